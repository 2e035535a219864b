"""Documents from a hostile hand: always refused as blueprints, soon, and without much memory."""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from esper.blueprints.canonical import canonical_json
from esper.blueprints.document import MAX_BYTES
from esper.blueprints.ir import MAX_EXPRESSIONS, SiteSignature, parse
from esper.blueprints.rules import MAX_MESSAGE_CHARACTERS
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid

Document = dict[str, Any]

#: CPU seconds and bytes within which any document is judged; a sound one takes about 2 ms.
MOST_S = 1.0
MOST_BYTES = 48 * 2**20
LETTERS = "abcdefghijklm"
RANGES = {letter: {"int": [1, 8], "default": 4} for letter in LETTERS}
SKETCH: Document = {
    "ir": 1,
    "id": "gated",
    "kind": "residual",
    "site": {"rank": ["NCL", "NCHW"], "causal": False, "channels": 64},
    "symbols": {"C": "site.channels", "P": "site.positions", "r": {"int": [4, "C"], "bucket": 8, "default": "C//4"}},
    "nodes": [
        {"id": "n", "op": "groupnorm", "in": ["x"], "attr": {"groups": "C//8"}},
        {"id": "u", "op": "split", "in": ["n"], "attr": {"parts": 2, "index": 0}},
        {"id": "v", "op": "split", "in": ["n"], "attr": {"parts": 2, "index": 1}},
        {"id": "m", "op": "mul", "in": ["u", "v"]},
        {"id": "d", "op": "scale_const", "in": ["m"], "attr": {"value": -0.5}},
        {"id": "c", "op": "concat", "in": ["d", "u"]},
        {"id": "t", "op": "scale", "in": ["c"], "init": "zeros", "role": "tail"},
    ],
    "out": "t",
    "merge": {"op": "add", "gate": "alpha"},
    "claims": {"preserves": "exact@alpha0,exact@birth", "params": "3*C", "flops": "2*P*C"},
}
TEMPLATE: Document = {"type": "attention", "input_size": 64, "output_size": 64, "hidden_size": 128, "heads": 4}
SITE = SiteSignature(kind="block", rank="NC", channels=8, in_channels=None, positions=(), causal=False)


def changed(**keys: Any) -> bytes:
    return json.dumps(SKETCH | keys).encode()


def claiming(params: Any) -> bytes:
    return changed(claims=SKETCH["claims"] | {"params": params}, symbols=SKETCH["symbols"] | RANGES)


def chain(*nodes: Document, symbols: Document | None = None, rank: Any = "NC") -> bytes:
    """Return nodes one after the other, a tail behind the last; a node reads its predecessor as often as it says."""
    made: list[Document] = []
    for place, node in enumerate(nodes):
        before = f"n{place - 1}" if place else "x"
        made.append({"id": f"n{place}", **node, "in": [before] * node.get("in", 1)})
    made.append({"id": "t", "op": "scale", "in": [made[-1]["id"]], "init": "zeros", "role": "tail"})
    sizes = {"C": "site.channels", **RANGES}
    site = {"rank": rank, "causal": False}
    return changed(site=site, symbols=symbols or sizes, nodes=made, out="t")


def grouped(size: str, times: int) -> bytes:
    return chain(*({"op": "groupnorm", "attr": {"groups": f"{size}*{place + 1}"}} for place in range(times)))


SUM = "(" + "+".join(LETTERS) + "+C)"
QUOTIENTS = "(" + "+".join(f"C//{divisor}" for divisor in range(2, 12)) + ")"
TOWER = "a"
while len(TOWER) < 90:
    TOWER = f"({TOWER}*{TOWER}+b)//c" if len(TOWER) < 40 else f"({TOWER}+b)//c"

HOSTILE: list[tuple[str, bytes | str]] = [
    ("size", b" " * (MAX_BYTES + 1)),
    ("json", b"{"),
    ("json", b""),
    ("json", b"\xff\xfe{}"),
    ("json", "{}\ud800"),
    ("type", b"[]"),
    ("depth", b"[" * 200_000),
    ("depth", b'{"a":' * 40_000),
    ("number", b'{"ir": ' + b"9" * 100_000 + b"}"),
    ("number", b'{"ir": 1e999}'),
    ("number", b'{"ir": 0.' + b"1" * 100_000 + b"}"),
    ("number", b'{"ir": NaN}'),
    ("number", b'{"ir": -Infinity}'),
    ("duplicate_key", b'{"ir": 1, "ir": 1}'),
    ("node_count", changed(nodes=SKETCH["nodes"] * 200)),
    ("symbol", changed(symbols={f"s{n}": "site.h" for n in range(1000)})),
    ("expression", claiming("(" * 400 + "C" + ")" * 400)),
    ("expression", claiming("(" * 100 + "C" + ")" * 100)),
    ("expression", claiming("*".join(["(C+P+a+r+1)"] * 30))),
    ("expression", claiming("*".join(["999999999"] * 20))),
    ("expression", claiming("//".join(["(C+P)"] * 80))),
    ("expression", claiming("C//0")),
    ("expression", claiming("1" * 400)),
    # characters that no fact could hold, or that steer a terminal
    ("json", json.dumps(SKETCH).replace('"gated"', '"\\ud83d"')),
    ("json", json.dumps(SKETCH).replace('"role"', '"\\udc00role"')),
    ("unknown_key", changed(**{"\x1b[2J\x00": 1})),
    # what is large: text, nodes, keys, lists
    ("size", " " * 2**20),
    ("size", changed(nodes=[{"id": f"n{n}", "op": "relu", "in": ["x"]} for n in range(1_000_000 // 100)])),
    ("size", claiming("C+" * 2**20)),
    ("node_count", changed(nodes=[0] * 50_000)),
    ("unknown_key", changed(**{f"k{n}": n for n in range(10_000)})),
    ("rank", changed(site={"rank": ["NC"] * 40_000, "causal": False})),
    ("arity", changed(nodes=[{"id": "t", "op": "concat", "in": ["x"] * 50_000}])),
    ("type", changed(nodes=[[[[[[[]]]]]]] * 60)),
    # sizes that explode
    ("output_shape", chain(*[{"op": "concat", "in": 2}] * 60)),
    ("expression", chain(*[{"op": "concat", "in": 4}] * 60)),
    ("gain", chain(*[{"op": "mul", "in": 2}] * 60)),
    ("expression", claiming(f"{SUM}*{SUM}*{SUM}")),
    ("expression", claiming(f"{SUM}*{SUM}" + "*1" * 200)),
    ("expression", claiming("(C+P)" * 40)),
    ("claims_params", claiming("*".join(f"({TOWER})" for _ in range(4)))),
    ("expression", claiming("//".join(["(C*P+1)"] * 60))),
    ("expression", chain({"op": "linear", "attr": {"out": "//".join(["(C+C*C)"] * 56)}})),
    ("expression", claiming("-" * 400 + "C")),
    ("expression", grouped(f"{SUM}*{SUM}", 60)),
    ("expression", grouped("C+" * 30 + "C", 63)),
    # just within what is allowed, and wrong in the end: the work is the most there can be
    ("claims_params", grouped(f"{SUM}*{SUM}", 35)),
    ("claims_params", grouped(QUOTIENTS, 40)),
    # a true formula that is longer than anybody would read
    (
        "claims_params",
        chain({"op": "linear", "attr": {"out": f"({TOWER})*{SUM}*(a+b+C+d)"}}, {"op": "linear", "attr": {"out": "C"}}),
    ),
    ("claims_params", grouped(f"({TOWER})", 25)),
]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def refusal(data: bytes | str, site: SiteSignature | None = None) -> BlueprintInvalid:
    with pytest.raises(BlueprintInvalid) as caught:
        verify(parse(data), site)
    return caught.value


@pytest.mark.parametrize(("rule", "data"), HOSTILE, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(HOSTILE)])
def test_hostile_input_is_refused_by_its_rule_in_bounded_time(rule: str, data: bytes | str) -> None:
    start_s = time.process_time()
    error = refusal(data)
    assert time.process_time() - start_s < MOST_S
    assert error.rule == rule, error
    assert len(error.message) < MAX_MESSAGE_CHARACTERS + 200
    error.message.encode()
    assert error.path.isprintable()


@pytest.mark.usefixtures("traced")
def test_no_hostile_input_takes_much_memory() -> None:
    for rule, data in HOSTILE:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        refusal(data)
        assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, rule


class Counted(str):
    """A text that only tells its length: reading or copying it is what must not happen."""

    __slots__ = ()

    def __len__(self) -> int:
        return 2**30

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        raise AssertionError("a gigabyte was copied before it was measured")


def test_a_gigabyte_of_text_is_refused_by_its_length_alone() -> None:
    assert refusal(Counted("{}")).rule == "size"


def test_the_heaviest_document_that_is_accepted_is_judged_in_bounded_time() -> None:
    ranges = {
        letter: {"int": [1, f"{QUOTIENTS}*{QUOTIENTS}*{place}"], "default": 1} for place, letter in enumerate("abc")
    }
    nodes = [
        {"id": "t", "op": "scale", "in": ["x"], "init": "zeros", "role": "tail"},
        *({"id": f"g{n}", "op": "gelu", "in": [f"g{n - 1}" if n else "t"]} for n in range(63)),
    ]
    site = {"rank": ["NC", "NTC", "NCL", "NCHW"], "causal": True}
    symbols = {"C": "site.channels", "P": "site.positions", **ranges}
    claims = SKETCH["claims"] | {"params": "C" + "+a-a" * 120, "flops": "P*C" + "+b-b" * 120}
    start_s = time.process_time()
    verify(parse(changed(site=site, symbols=symbols, nodes=nodes, out="g62", claims=claims)))
    assert time.process_time() - start_s < MOST_S


def test_what_can_be_said_in_expressions_is_bounded_over_the_whole_document() -> None:
    long = {letter: {"int": [1, "C" + "+0" * 200], "default": 1} for letter in "abcdefgh"}
    error = refusal(changed(symbols=SKETCH["symbols"] | long))
    assert error.rule == "expression"
    assert f"{MAX_EXPRESSIONS} are allowed" in error.message


WRONG = [
    None,
    True,
    False,
    0,
    -1,
    7,
    10**17,
    1.5,
    -0.0,
    1e300,
    "",
    "x",
    "C",
    "site.channels",
    "\x00",
    "9" * 30,
    "é" * 50,
]
WRONG += [[], [[]], [None], ["x", "x"], [1, 2], {}, {"": 0}, {"int": [1, 2], "default": 3}, [{}], {"op": {}}]


def places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the place of every value of a document, the whole of it included."""
    yield path
    keys = found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
    for key in keys:
        yield from places(found[key], (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.deepcopy(document)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def judged(document: Any) -> BlueprintInvalid | None:
    """Return why a document is refused, None if it is sound; nothing else may come out."""
    try:
        blueprint = parse(json.dumps(document))
        verify(blueprint)
        verify(parse(canonical_json(blueprint)))
    except BlueprintInvalid as error:
        return error
    return None


@pytest.mark.parametrize("document", [SKETCH, TEMPLATE], ids=["blueprint", "template"])
def test_any_wrong_value_at_any_place_is_refused_as_a_blueprint_or_changes_nothing_that_matters(
    document: Document,
) -> None:
    assert judged(document) is None
    accepted = []
    for path in places(document):
        for value in WRONG:
            error = judged(with_value(document, path, value))
            if error is None:
                accepted.append((path, value))
            else:
                assert error.rule
                error.message.encode()
    # What is left are values of the right type that happen to be sound: other names, sizes, flags, ranges.
    assert {type(value) for _, value in accepted} <= {bool, int, float, str, dict, list}
    assert not [path for path, value in accepted if value is None or path == ()]
    assert len(accepted) < 60, accepted


@pytest.mark.parametrize("document", [SKETCH, TEMPLATE], ids=["blueprint", "template"])
def test_every_key_that_is_left_out_misspelled_or_put_elsewhere_is_judged(document: Document) -> None:
    for path in places(document):
        if not path or not isinstance(path[-1], str):
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        without = {key: value for key, value in parent.items() if key != path[-1]}
        judged(with_value(document, path[:-1], without))
        misspelled = judged(with_value(document, path[:-1], without | {f"{path[-1]} ": parent[path[-1]]}))
        assert misspelled is not None, path
