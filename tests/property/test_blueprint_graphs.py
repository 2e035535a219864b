"""Random graphs: whatever the static verifier accepts passes the structural crucible."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from esper.blueprints.build import build
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.cost import parameters
from esper.blueprints.crucible import characterize
from esper.blueprints.graph import order
from esper.blueprints.ir import Blueprint, Claims, Node, Site, SiteSignature, parse
from esper.blueprints.shapes import infer, spelled
from esper.blueprints.structure import check_structure
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid

POSITIONS = {"NC": (), "NTC": (6,), "NCL": (7,), "NCHW": (4, 5)}
SYMBOLS: dict[str, dict[str, Any]] = {
    "NC": {},
    "NTC": {"T": "site.t"},
    "NCL": {"L": "site.l"},
    "NCHW": {"H": "site.h", "W": "site.w"},
}
POINTWISE = ["relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "softmax", "identity", "scale", "bias"]
NORMS = {
    "NC": ["layernorm", "rmsnorm", "groupnorm"],
    "NTC": ["layernorm", "rmsnorm"],
    "NCL": ["groupnorm"],
    "NCHW": ["groupnorm"],
}
WIDTHS = ["C", "2*C", "r", "6"]
#: Allowed behind a zero tail by the rule, and not allowed.
AFTER = ["gelu", "silu", "tanh", "bias", "scale", "identity", "scale_const"]
NOT_AFTER = ["relu", "sigmoid", "softplus", "softmax"]


class Grower:
    """Draws a graph node after node; keeps what each value's rank and channels are."""

    def __init__(self, draw: st.DrawFn, rank: str, *, causal: bool) -> None:
        self.draw = draw
        self.rank = rank
        self.causal = causal
        self.nodes: list[Node] = []
        #: Value -> rank and channels.
        self.values: dict[str, tuple[str, str]] = {"x": (rank, "C")}
        self.loose: list[str] = ["x"]

    def add(self, op: str, inputs: list[str], rank: str, channels: str, attr: dict[str, Any], **more: Any) -> str:
        name = f"v{len(self.nodes)}"
        document = {"id": name, "op": op, "in": inputs, "attr": attr} | more
        self.nodes.append(_node(document))
        self.values[name] = (rank, channels)
        self.loose = [value for value in self.loose if value not in inputs] + [name]
        return name

    def affine(self, source: str, out: str | None, **more: Any) -> str:
        """Add a linear layer or convolution that keeps the positions; depthwise where out is None."""
        rank, channels = self.values[source]
        if rank in {"NC", "NTC"}:
            attr = {"out": out or channels, "bias": self.draw(st.booleans())}
            return self.add("linear", [source], rank, out or channels, attr, **more)
        k = self.draw(st.sampled_from([1, 3, 5]))
        dilation = self.draw(st.sampled_from([1, 2]))
        attr = {"k": k, "dilation": dilation, "bias": self.draw(st.booleans())}
        if rank == "NCL" and (self.causal or self.draw(st.booleans())):
            attr["causal"] = True
        elif self.causal:
            attr["k"] = 1
        else:
            attr["pad"] = dilation * (k - 1) // 2
        kind = ("conv" if out else "dwconv") + ("1d" if rank == "NCL" else "2d")
        if out:
            attr["out"] = out
        return self.add(kind, [source], rank, out or channels, attr, **more)

    def step(self) -> None:
        source = self.draw(st.sampled_from(sorted(self.values)))
        rank, channels = self.values[source]
        match self.draw(st.sampled_from(["affine", "affine", "depthwise", "point", "norm", "pair", "join", "move"])):
            case "affine":
                self.affine(source, self.draw(st.sampled_from(WIDTHS)))
            case "depthwise":
                self.affine(source, None)
            case "point":
                self.add(self.draw(st.sampled_from(POINTWISE)), [source], rank, channels, {})
            case "norm":
                op = self.draw(st.sampled_from(NORMS[rank]))
                if op != "groupnorm" or not self.causal:
                    self.add(op, [source], rank, channels, {"groups": 2} if op == "groupnorm" else {})
            case "pair":
                alike = [name for name, value in self.values.items() if value == (rank, channels)]
                other = self.draw(st.sampled_from(sorted(alike)))
                op = self.draw(st.sampled_from(["add", "sub", "mul"]))
                self.add("add" if op == "sub" and other == source else op, [source, other], rank, channels, {})
            case "join":
                self.add("concat", [source, source], rank, f"2*({channels})", {})
            case "move":
                self.move(source)

    def move(self, source: str) -> None:
        rank, channels = self.values[source]
        if rank in {"NTC", "NCL"} and self.draw(st.booleans()):
            self.add("transpose_tokens", [source], {"NTC": "NCL", "NCL": "NTC"}[rank], channels, {})
        elif rank != "NC" and not self.causal:
            self.add("gap", [source], "NC", channels, {})
        elif rank == "NC" and self.rank != "NC":
            self.add("broadcast", [source], self.rank, channels, {})

    def to_site(self, source: str) -> str:
        """Bring a value to the site's rank."""
        rank, channels = self.values[source]
        if rank == self.rank:
            return source
        if rank == "NC":
            return self.add("broadcast", [source], self.rank, channels, {})
        return self.add("transpose_tokens", [source], self.rank, channels, {})

    def finish(self, *, wild: bool) -> str:
        """Let every loose value end in a tail of its own or of all, and add the tails up."""
        ends = [self.to_site(source) for source in [*self.loose]]
        if self.draw(st.booleans()):
            ends = [self.sum([self.affine(end, "C") for end in ends])]
        tails = []
        for end in ends:
            tail = self.affine(end, "C", init="zeros", role="tail")
            if self.draw(st.booleans()):
                tail = self.add("mul", [tail, "x"], self.rank, "C", {})
            for op in self.draw(st.lists(st.sampled_from(AFTER + (NOT_AFTER if wild else [])), max_size=2)):
                tail = self.add(op, [tail], self.rank, "C", {"value": -1.5} if op == "scale_const" else {})
            tails.append(tail)
        return self.sum(tails)

    def sum(self, values: list[str]) -> str:
        total = values[0]
        for value in values[1:]:
            total = self.add("add", [total, value], self.rank, "C", {})
        return total


def _node(document: dict[str, Any]) -> Node:
    """Read one node as the parser does, defaults filled in."""
    frame = {
        "ir": 1,
        "id": "frame",
        "kind": "residual",
        "site": {"rank": "NC", "causal": False},
        "symbols": {},
        "nodes": [document],
        "out": document["id"],
        "merge": {"op": "add", "gate": "alpha"},
        "claims": {"preserves": "exact@alpha0,exact@birth", "params": 0, "flops": 0},
    }
    return parse(json.dumps(frame)).nodes[0]


@st.composite
def graphs(draw: st.DrawFn, *, wild: bool) -> tuple[Blueprint, SiteSignature]:
    """Return a random blueprint with true claims, and a site for it."""
    rank = draw(st.sampled_from(sorted(POSITIONS)))
    causal = draw(st.booleans())
    grower = Grower(draw, rank, causal=causal and not (wild and draw(st.booleans())))
    for _ in range(draw(st.integers(0, 7))):
        grower.step()
    out = grower.finish(wild=wild)
    symbols = {"C": "site.channels", "r": {"int": [2, "C"], "bucket": 4, "default": "C//2"}} | SYMBOLS[rank]
    frame = json.loads(
        json.dumps(
            {
                "ir": 1,
                "id": "random",
                "kind": "residual",
                "site": {"rank": rank, "causal": causal},
                "symbols": symbols,
                "nodes": [{"id": "t", "op": "zero", "in": ["x"], "role": "tail"}],
                "out": "t",
                "merge": {"op": "add", "gate": "alpha"},
                "claims": {"preserves": "exact@alpha0,exact@birth", "params": 0, "flops": 0},
            }
        )
    )
    base = parse(json.dumps(frame))
    shell = Blueprint(base.id, base.kind, Site((rank,), causal), base.symbols, tuple(grower.nodes), out, base.claims)
    flow = infer(shell, order(shell), rank)
    claims = Claims(base.claims.preserves, spelled(flow.parameters, flow.names), spelled(flow.flops, flow.names))
    whole = Blueprint(base.id, base.kind, shell.site, base.symbols, shell.nodes, out, claims)
    signature = SiteSignature(
        kind="block",
        rank=rank,
        channels=draw(st.sampled_from([4, 8])),
        in_channels=None,
        positions=POSITIONS[rank],
        causal=causal and draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
    )
    return whole, signature


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def broken_rule(blueprint: Blueprint, signature: SiteSignature) -> str | None:
    """Return the rule the verifier refuses a graph for, or None."""
    try:
        verify(blueprint, signature)
    except BlueprintInvalid as error:
        return error.rule
    return None


SMALL = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SMALL
@given(graphs(wild=False), st.integers(0, 2**32))
def test_what_is_built_by_the_rules_is_accepted_and_passes_the_structural_crucible(
    pair: tuple[Blueprint, SiteSignature], seed: int
) -> None:
    blueprint, signature = pair
    refusal = broken_rule(blueprint, signature)
    if refusal is not None:
        assert refusal == "gain", "the one rule that the drawing does not keep by itself"
        return
    event(f"{signature.rank}, {len(blueprint.nodes) // 4 * 4}+ nodes")
    module = build(blueprint, signature, seed=seed)
    measured = check_structure(module, blueprint, signature, seed=seed)
    assert all(measured.checks.values()), (measured, canonical_json(blueprint))
    assert measured.numbers["parameters"] == parameters(blueprint, signature)


@SMALL
@given(graphs(wild=True), st.integers(0, 2**32))
def test_what_the_verifier_accepts_of_wild_graphs_passes_the_structural_crucible(
    pair: tuple[Blueprint, SiteSignature], seed: int
) -> None:
    blueprint, signature = pair
    refusal = broken_rule(blueprint, signature)
    event(f"rule: {refusal}")
    if refusal is not None:
        assert refusal in {"gain", "after_tail", "causality"}
        return
    module = build(blueprint, signature, seed=seed)
    measured = check_structure(module, blueprint, signature, seed=seed)
    assert all(measured.checks.values()), (measured, canonical_json(blueprint))


@SMALL
@given(graphs(wild=False), st.randoms(use_true_random=False))
def test_the_hash_of_a_random_graph_survives_new_names_and_a_new_order(
    pair: tuple[Blueprint, SiteSignature], random: Any
) -> None:
    blueprint, _ = pair
    names = {node.id: f"w{place}" for place, node in enumerate(random.sample(blueprint.nodes, len(blueprint.nodes)))}
    renamed = [
        Node(names[n.id], n.op, tuple(names.get(i, i) for i in n.inputs), n.attr, n.init, n.role)
        for n in blueprint.nodes
    ]
    random.shuffle(renamed)
    turned = Blueprint(
        blueprint.id,
        blueprint.kind,
        blueprint.site,
        blueprint.symbols,
        tuple(renamed),
        names[blueprint.out],
        blueprint.claims,
    )
    assert blueprint_id(turned) == blueprint_id(blueprint)
    assert blueprint_id(parse(canonical_json(turned))) == blueprint_id(blueprint)


def test_random_graphs_are_hardly_ever_dead_and_never_overflow() -> None:
    """Jumps are left out: a graph that amplifies its input jumps, and is rejected for it."""
    judged: list[set[str]] = []

    @settings(SMALL, max_examples=25)
    @given(graphs(wild=False))
    def collect(pair: tuple[Blueprint, SiteSignature]) -> None:
        if broken_rule(*pair) is None:
            judged.append(set(characterize(build(*pair, seed=1), *pair).failed))

    collect()
    assert len(judged) >= 20
    assert not [failed for failed in judged if failed & {"finite_float32", "finite_bfloat16", "tail_gradient"}]
    dead = [failed for failed in judged if "body_gradient" in failed]
    assert len(dead) <= len(judged) * 0.05
