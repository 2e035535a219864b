"""Form and rules of blueprints: what is read, and what is refused for which reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from esper.blueprints.expression import read_expression
from esper.blueprints.ir import SiteSignature, parse
from esper.blueprints.ops import OPS
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.rules import RULES
from esper.blueprints.verify import fits, verify
from esper.errors import BlueprintInvalid, EsperError

Document = dict[str, Any]
Change = Callable[[Document], None]

SKETCH: Document = {
    "ir": 1,
    "id": "conv_bottleneck",
    "kind": "residual",
    "site": {"rank": "NCHW", "causal": False},
    "symbols": {
        "C": "site.channels",
        "H": "site.h",
        "W": "site.w",
        "r": {"int": [4, "C"], "bucket": 8, "default": "C//4"},
    },
    "nodes": [
        {"id": "p1", "op": "conv2d", "in": ["x"], "attr": {"out": "r", "k": 1}, "init": "kaiming"},
        {"id": "a1", "op": "gelu", "in": ["p1"]},
        {"id": "c", "op": "conv2d", "in": ["a1"], "attr": {"out": "r", "k": 3, "pad": 1}, "init": "kaiming"},
        {"id": "a2", "op": "gelu", "in": ["c"]},
        {"id": "t", "op": "conv2d", "in": ["a2"], "attr": {"out": "C", "k": 1}, "init": "zeros", "role": "tail"},
    ],
    "out": "t",
    "merge": {"op": "add", "gate": "alpha"},
    "claims": {
        "preserves": "exact@alpha0,exact@birth",
        "params": "2*C*r+9*r*r+2*r+C",
        "flops": "2*H*W*(2*C*r+9*r*r)",
    },
}
CONV_SITE = SiteSignature(kind="conv2d", rank="NCHW", channels=32, in_channels=3, positions=(8, 6), causal=False)


def document(change: Change | None = None) -> bytes:
    changed = copy.deepcopy(SKETCH)
    if change is not None:
        change(changed)
    return json.dumps(changed).encode()


def refusal(data: bytes | str) -> BlueprintInvalid:
    with pytest.raises(BlueprintInvalid) as caught:
        verify(parse(data))
    return caught.value


def test_the_form_sketched_in_the_design_is_read_and_resolved() -> None:
    found = verify(parse(document()), CONV_SITE)
    assert found.symbols == {"C": 32, "H": 8, "W": 6, "r": 8}
    assert found.parameters == 2 * 32 * 8 + 9 * 64 + 16 + 32
    assert found.flops == 2 * 48 * (2 * 32 * 8 + 9 * 64)


def _set(*path: str | int, value: Any) -> Change:
    def change(doc: Any) -> None:
        for key in path[:-1]:
            doc = doc[key]
        doc[path[-1]] = value

    return change


def _drop(*path: str | int) -> Change:
    def change(doc: Any) -> None:
        for key in path[:-1]:
            doc = doc[key]
        del doc[path[-1]]

    return change


def _append_after_tail(op: str, **more: Any) -> Change:
    def change(doc: Document) -> None:
        doc["nodes"].append({"id": "z", "op": op, "in": ["t"]} | more)
        doc["out"] = "z"

    return change


def _replace_nodes(*nodes: Document, out: str) -> Change:
    def change(doc: Document) -> None:
        doc["nodes"] = list(nodes)
        doc["out"] = out

    return change


def _conv(name: str, source: str, *, zeros: bool = False, out: str = "C", k: int = 1) -> Document:
    made: Document = {"id": name, "op": "conv2d", "in": [source], "attr": {"out": out, "k": k, "pad": k // 2}}
    return made | ({"init": "zeros", "role": "tail"} if zeros else {})


def _as_lowrank(doc: Document) -> None:
    doc["kind"] = "lowrank_weight"
    doc["site"] = {"rank": "NC", "causal": False}
    doc["symbols"] = {"C": "site.channels"}
    doc["nodes"] = [{"id": "t", "op": "linear", "in": ["x"], "attr": {"out": "C"}, "init": "zeros", "role": "tail"}]
    doc["symbols"]["D"] = "site.in_channels"
    doc["claims"] |= {"params": "C*D+C", "flops": "2*C*D"}


BROKEN: list[tuple[str, str, Change]] = [
    # rule, path, what is broken
    ("unknown_key", "colour", _set("colour", value="red")),
    ("unknown_key", "nodes[1].weight", _set("nodes", 1, "weight", value=1)),
    ("unknown_key", "site.h", _set("site", "h", value=3)),
    ("missing_key", "claims", _drop("claims")),
    ("missing_key", "nodes[0].op", _drop("nodes", 0, "op")),
    ("type", "nodes", _set("nodes", value={})),
    ("type", "nodes[2]", _set("nodes", 2, value="gelu")),
    ("type", "site.causal", _set("site", "causal", value="no")),
    ("type", "ir", _set("ir", value=True)),
    ("version", "ir", _set("ir", value=2)),
    ("name", "id", _set("id", value="../etc")),
    ("name", "nodes[0].id", _set("nodes", 0, "id", value="__class__")),
    ("kind", "kind", _set("kind", value="swap")),
    ("merge", "merge", _set("merge", value={"op": "replace"})),
    ("rank", "site.rank", _set("site", "rank", value="NDHWC")),
    ("rank", "site.rank", _set("site", "rank", value=[])),
    ("node_count", "nodes", _set("nodes", value=[])),
    ("symbol", "symbols.C", _set("symbols", "C", value="site.batch")),
    ("symbol", "symbols.H", _set("symbols", "H", value="site.t")),
    ("symbol", "symbols.r.int", _set("symbols", "r", "int", value=[4])),
    ("expression", "symbols.r.default", _set("symbols", "r", "default", value="r//2")),
    ("expression", "nodes[0].attr.out", _set("nodes", 0, "attr", "out", value="q")),
    ("expression", "nodes[0].attr.out", _set("nodes", 0, "attr", "out", value="__import__('os')")),
    ("unknown_op", "nodes[1].op", _set("nodes", 1, "op", value="fourier")),
    ("cross_batch", "nodes[1].op", _set("nodes", 1, "op", value="batchnorm2d")),
    ("unknown_attr", "nodes[1].attr.slope", _set("nodes", 1, "attr", value={"slope": 0.1})),
    ("missing_attr", "nodes[0].attr.k", _drop("nodes", 0, "attr", "k")),
    ("attr_type", "nodes[2].attr.k", _set("nodes", 2, "attr", "k", value="3")),
    ("attr_type", "nodes[2].attr.bias", _set("nodes", 2, "attr", "bias", value=1)),
    ("attr_type", "nodes[2].attr.k", _set("nodes", 2, "attr", "k", value=True)),
    ("attr_bounds", "nodes[2].attr.k", _set("nodes", 2, "attr", "k", value=99)),
    ("attr_bounds", "nodes[0].attr.out", _set("nodes", 0, "attr", "out", value=0)),
    ("attr_bounds", "nodes[5].attr.value", _append_after_tail("scale_const", attr={"value": 0})),
    ("arity", "nodes[1].in", _set("nodes", 1, "in", value=["p1", "x"])),
    ("init", "nodes[0].init", _set("nodes", 0, "init", value="magic")),
    ("init", "nodes[1].init", _set("nodes", 1, "init", value="zeros")),
    ("role", "nodes[0].role", _set("nodes", 0, "role", value="tail")),
    ("role", "nodes[4].role", _drop("nodes", 4, "role")),
    ("duplicate_id", "nodes[1].id", _set("nodes", 1, "id", value="p1")),
    ("duplicate_id", "nodes[0].id", _set("nodes", 0, "id", value="x")),
    ("unknown_input", "nodes[1].in[0]", _set("nodes", 1, "in", value=["p9"])),
    ("unknown_input", "out", _set("out", value="nowhere")),
    ("cycle", "nodes[0]", _set("nodes", 0, "in", value=["a2"])),
    ("cycle", "nodes[1]", _set("nodes", 1, "in", value=["a1"])),
    ("multiple_sinks", "nodes[5]", lambda doc: doc["nodes"].append({"id": "z", "op": "relu", "in": ["p1"]})),
    ("multiple_sinks", "nodes[4]", _set("out", value="a2")),
    (
        "unreachable",
        "nodes[5]",
        lambda doc: doc["nodes"].extend(
            [{"id": "y", "op": "relu", "in": ["p1"]}, {"id": "z", "op": "relu", "in": ["y"]}]
        ),
    ),
    ("shape", "nodes[1]", _set("nodes", 1, value={"id": "a1", "op": "add", "in": ["p1", "x"]})),
    ("shape", "nodes[1]", _set("nodes", 1, "op", value="layernorm")),
    ("output_shape", "out", _set("nodes", 4, "attr", "out", value="r")),
    ("output_shape", "out", _set("nodes", 2, "attr", "pad", value=0)),
    ("missing_tail", "out", lambda doc: [doc["nodes"][4].pop(key) for key in ("init", "role")]),
    (
        "missing_tail",
        "out",
        _replace_nodes(_conv("t", "x", zeros=True), {"id": "s", "op": "add", "in": ["t", "x"]}, out="s"),
    ),
    ("after_tail", "nodes[5]", _append_after_tail("relu")),
    ("after_tail", "nodes[5]", _append_after_tail("sigmoid")),
    ("after_tail", "nodes[5]", _append_after_tail("softmax")),
    ("after_tail", "nodes[5]", _append_after_tail("softplus")),
    ("after_tail", "nodes[5]", _append_after_tail("groupnorm")),
    ("zeros_in_series", "nodes[5]", _append_after_tail("scale", init="zeros", role="tail")),
    (
        "zeros_in_series",
        "nodes[2]",
        _replace_nodes(
            _conv("s", "x", zeros=True),
            _conv("t", "x", zeros=True),
            {"id": "m", "op": "mul", "in": ["s", "t"]},
            out="m",
        ),
    ),
    (
        "zeros_in_series",
        "nodes[2]",
        _replace_nodes(
            _conv("s", "x", zeros=True),
            {"id": "a", "op": "add", "in": ["s", "x"]},
            _conv("t", "a", zeros=True),
            out="t",
        ),
    ),
    (
        "placebo",
        "nodes[1]",
        _replace_nodes(_conv("p", "x"), {"id": "t", "op": "zero", "in": ["p"], "role": "tail"}, out="t"),
    ),
    ("cancelled", "nodes[5]", _append_after_tail("sub", **{"in": ["t", "t"]})),
    (
        "gain",
        "nodes[2]",
        _replace_nodes(
            *({"id": f"m{n}", "op": "mul", "in": [f"m{n - 1}" if n else "x"] * 2} for n in range(4)),
            _conv("t", "m3", zeros=True),
            out="t",
        ),
    ),
    ("causality", "site.causal", _set("site", "causal", value=True)),
    ("not_foldable", "nodes[0]", _as_lowrank),
    ("claims_preserves", "claims.preserves", _set("claims", "preserves", value="mostly")),
    ("claims_params", "claims.params", _set("claims", "params", value="2*C*r")),
    ("claims_flops", "claims.flops", _set("claims", "flops", value=1000)),
]


@pytest.mark.parametrize(("rule", "path", "change"), BROKEN, ids=[f"{r}-{p}" for r, p, _ in BROKEN])
def test_a_broken_blueprint_is_refused_for_its_rule_at_its_place(rule: str, path: str, change: Change) -> None:
    error = refusal(document(change))
    assert (error.rule, error.path) == (rule, path)
    assert error.hint == RULES[rule]
    assert rule in str(error)


@pytest.mark.parametrize(
    ("rule", "site"),
    [
        ("symbol_bounds", {"channels": 3}),
        ("signature", {"rank": "NCL", "positions": (9,), "kind": "conv1d"}),
        ("signature", {"positions": (8,)}),
        ("signature", {"channels": 0}),
        ("signature", {"causal": True}),
        ("signature", {"dtype": "int8"}),
        ("signature", {"kind": "pooling"}),
        ("budget", {"channels": 16_384}),
        ("budget", {"positions": (4096, 4096)}),
    ],
)
def test_a_site_that_does_not_fit_is_refused_and_fits_tells_why(rule: str, site: dict[str, Any]) -> None:
    signature = replace(CONV_SITE, **site)
    with pytest.raises(BlueprintInvalid) as caught:
        verify(parse(document()), signature)
    assert caught.value.rule == rule
    assert fits(parse(document()), signature) == caught.value.message
    assert fits(parse(document()), CONV_SITE) is None


@pytest.mark.parametrize(("channels", "size"), [(4, 4), (6, 6), (32, 8), (40, 16), (64, 16), (256, 64)])
def test_a_size_is_rounded_up_to_its_bucket_and_kept_within_its_bounds(channels: int, size: int) -> None:
    found = verify(parse(document()), replace(CONV_SITE, channels=channels))
    assert found.symbols["r"] == size


def test_symbols_of_one_name_for_several_ranks_mean_each_rank_s_own_size() -> None:
    error = refusal(document(_set("site", "rank", value=["NCHW", "NCL"])))
    assert (error.rule, error.path) == ("symbol", "symbols.H")


NAMES = {"a": Polynomial.named("a"), "b": Polynomial.named("b")}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("(a+b)*(a-b)", "a*a - b*b"),
        ("2*a*(b+3)", "6*a + 2*a*b"),
        ("(4*a+8)//4", "a+2"),
        ("7//2", "3"),
        ("-7//2", "-4"),
        ("a - -b", "b + a"),
        ("a//b*b", "b*(a//b)"),
    ],
)
def test_expressions_that_are_equal_as_polynomials_are_equal(left: str, right: str) -> None:
    first, second = read_expression(left, NAMES, "p"), read_expression(right, NAMES, "p")
    assert first == second
    assert hash(first) == hash(second)
    assert first.evaluate({"a": 7, "b": 3}) == eval(left, {}, {"a": 7, "b": 3})


@pytest.mark.parametrize(("left", "right"), [("a-b", "b-a"), ("a//2*2", "a"), ("a*a", "2*a"), ("a//b", "b//a")])
def test_expressions_that_differ_somewhere_are_not_equal(left: str, right: str) -> None:
    assert read_expression(left, NAMES, "p") != read_expression(right, NAMES, "p")


def test_errors_of_the_verifier_are_errors_of_esper_with_a_code() -> None:
    error = refusal(b"{}")
    assert isinstance(error, EsperError)
    assert error.code == "E-BP-002"


def test_no_operator_of_the_table_mixes_samples() -> None:
    assert not [name for name in OPS if "batch" in name]
