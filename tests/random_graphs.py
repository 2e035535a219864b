"""Random blueprints of every kind, as people plausibly write them, and their broken siblings.

A graph is drawn from a ``random.Random``: the same number gives the same graph, and hypothesis can drive it too.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from esper.blueprints.claims import with_claims
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kinds import KINDS

Document = dict[str, Any]

POSITIONS: dict[str, list[tuple[int, ...]]] = {
    "NC": [()],
    "NTC": [(6,), (16,)],
    "NCL": [(7,), (20,)],
    "NCHW": [(4, 5), (8, 8)],
}
POSITION_SYMBOLS = {"NC": {}, "NTC": {"T": "site.t"}, "NCL": {"L": "site.l"}, "NCHW": {"H": "site.h", "W": "site.w"}}
SITES = {
    "NC": ["linear", "norm", "block"],
    "NTC": ["linear", "attention", "norm", "block"],
    "NCL": ["conv1d", "norm", "block"],
    "NCHW": ["conv2d", "norm", "block"],
}
CHANNELS = [4, 8, 8, 12, 16, 16, 24, 32, 32, 64, 64, 128]
WIDE = {"NC": [256, 512], "NTC": [256, 512], "NCL": [256, 512], "NCHW": [256]}
ACTIVATIONS = ["relu", "gelu", "silu", "tanh", "sigmoid", "softplus"]
NORMS = {
    "NC": ["layernorm", "rmsnorm", "groupnorm"],
    "NTC": ["layernorm", "rmsnorm"],
    "NCL": ["groupnorm"],
    "NCHW": ["groupnorm"],
}
WIDTHS = ["C", "2*C", "r", "r", "r", "8"]
#: Allowed behind a zero tail by the rule, and not allowed.
AFTER = ["gelu", "silu", "tanh", "bias", "scale", "identity", "scale_const"]
NOT_AFTER = ["relu", "sigmoid", "softplus", "softmax"]
STEPS = [
    *["affine"] * 6,
    *["point"] * 5,
    *["norm"] * 3,
    *["depthwise"] * 2,
    *["join", "move", "pool", "split", "attend", "gated", "scaled", "soft"],
]


class Grower:
    """Draws a graph node after node; keeps what each value's rank and channels are."""

    def __init__(self, rng: Random, rank: str, *, causal: bool, entry: str = "C") -> None:
        self.rng = rng
        self.rank = rank
        self.causal = causal
        self.nodes: list[Document] = []
        #: Value -> rank and channels.
        self.values: dict[str, tuple[str, str]] = {"x": (rank, entry)}
        self.loose: list[str] = ["x"]
        self.last = "x"

    def add(self, op: str, inputs: list[str], rank: str, channels: str, attr: Document, **more: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append({"id": name, "op": op, "in": inputs, "attr": attr} | more)
        self.values[name] = (rank, channels)
        self.loose = [value for value in self.loose if value not in inputs] + [name]
        self.last = name
        return name

    def affine(self, source: str, out: str | None, *, bias: bool | None = None, **more: Any) -> str:
        """Add a linear layer or convolution that keeps the positions; depthwise where out is None."""
        rank, channels = self.values[source]
        attr: Document = {"bias": self.rng.random() < 0.7 if bias is None else bias}
        if rank in {"NC", "NTC"}:
            return self.add("linear", [source], rank, out or channels, attr | {"out": out or channels}, **more)
        attr |= {"k": self.rng.choice([1, 1, 3, 3, 5]), "dilation": self.rng.choice([1, 1, 2])}
        if rank == "NCL" and (self.causal or self.rng.random() < 0.3):
            attr["causal"] = True
        elif self.causal:
            attr["k"] = 1
        else:
            attr["pad"] = attr["dilation"] * (attr["k"] - 1) // 2
        kind = ("conv" if out else "dwconv") + ("1d" if rank == "NCL" else "2d")
        if out:
            attr["out"] = out
        return self.add(kind, [source], rank, out or channels, attr, **more)

    def source(self) -> str:
        """Return where the next step starts: mostly where the last one ended."""
        return self.last if self.rng.random() < 0.7 else self.rng.choice(sorted(self.values))

    def step(self) -> None:
        source = self.source()
        getattr(self, f"step_{self.rng.choice(STEPS)}")(source, *self.values[source])

    def step_affine(self, source: str, rank: str, channels: str) -> None:
        self.affine(source, self.rng.choice(WIDTHS))

    def step_depthwise(self, source: str, rank: str, channels: str) -> None:
        self.affine(source, None)

    def step_point(self, source: str, rank: str, channels: str) -> None:
        self.add(self.rng.choice(ACTIVATIONS), [source], rank, channels, {})

    def step_soft(self, source: str, rank: str, channels: str) -> None:
        self.add(self.rng.choice(["softmax", "identity", "scale", "bias"]), [source], rank, channels, {})

    def step_norm(self, source: str, rank: str, channels: str) -> None:
        op = self.rng.choice(NORMS[rank])
        if op != "groupnorm" or rank == "NC" or not self.causal:
            self.add(op, [source], rank, channels, {"groups": 2} if op == "groupnorm" else {})

    def step_gated(self, source: str, rank: str, channels: str) -> None:
        gate = self.add(self.rng.choice(["sigmoid", "silu", "tanh"]), [source], rank, channels, {})
        self.add("mul", [self.affine(source, channels), gate], rank, channels, {})

    def step_scaled(self, source: str, rank: str, channels: str) -> None:
        self.add("scale_const", [source], rank, channels, {"value": self.rng.choice([0.1, 0.5, -1.0, 2.0])})

    def step_split(self, source: str, rank: str, channels: str) -> None:
        self.pair(*(self.part(source, index) for index in range(2)))

    def step_join(self, source: str, rank: str, channels: str) -> None:
        self.pair(source)

    def step_pool(self, source: str, rank: str, channels: str) -> None:
        if rank != "NC" and not (self.causal and rank == "NCHW"):
            self.add("mean_pool", [source], rank, channels, {"k": self.rng.choice([2, 3, 5]), "causal": self.causal})

    def step_attend(self, source: str, rank: str, channels: str) -> None:
        if rank == "NTC":
            self.attention(source)

    def step_move(self, source: str, rank: str, channels: str) -> None:
        if rank in {"NTC", "NCL"} and self.rng.random() < 0.5:
            self.add("transpose_tokens", [source], {"NTC": "NCL", "NCL": "NTC"}[rank], channels, {})
        elif rank != "NC" and not self.causal:
            self.add("gap", [source], "NC", channels, {})
        elif rank == "NC" and self.rank != "NC":
            self.add("broadcast", [source], self.rank, channels, {})

    def pair(self, source: str, other: str | None = None) -> None:
        rank, channels = self.values[source]
        alike = [name for name, value in self.values.items() if value == (rank, channels)]
        second = other or self.rng.choice(sorted(alike))
        op = self.rng.choice(["add", "add", "sub", "mul", "concat"])
        out = f"2*({channels})" if op == "concat" else channels
        self.add("add" if op == "sub" and second == source else op, [source, second], rank, out, {})

    def part(self, source: str, index: int) -> str:
        rank, channels = self.values[source]
        attr = {"parts": 2, "index": index}
        return self.add("split", [source], rank, f"({channels})//2", attr)

    def attention(self, source: str, *, value: str | None = None) -> str:
        out = self.rng.choice(["C", "r"]) if value is None else self.values[value][1]
        query, key = (self.affine(source, out, bias=False) for _ in range(2))
        value = value or self.affine(source, out, bias=False)
        attr = {"heads": self.rng.choice([1, 2, 4]), "causal": self.causal or self.rng.random() < 0.3}
        return self.add("sdpa", [query, key, value], "NTC", out, attr)

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
        if len(ends) > 1 and self.rng.random() < 0.7:
            ends = [self.sum([self.affine(end, "C") for end in ends])]
        return self.sum([self.tail(end, wild=wild) for end in ends])

    def tail(self, end: str, *, wild: bool) -> str:
        channels = self.values[end][1]
        if channels == "C" and self.rng.random() < 0.1:
            tail = self.add("scale", [end], self.rank, "C", {}, init="zeros", role="tail")
        else:
            tail = self.affine(end, "C", init="zeros", role="tail")
        chance = self.rng.random()
        if chance < 0.1:
            tail = self.add("mul", [tail, "x"], self.rank, "C", {})
        elif chance < 0.15 and self.rank == "NTC":
            tail = self.attention(end, value=tail)
        elif chance < 0.2:
            tail = self.affine(tail, "C")
        known = AFTER + (NOT_AFTER if wild else [])
        for _ in range(self.rng.choice([0, 0, 0, 1, 2])):
            op = self.rng.choice(known)
            value = {"value": self.rng.choice([-1.5, 0.5, 4.0])} if op == "scale_const" else {}
            tail = self.add(op, [tail], self.rank, "C", value)
        return tail

    def sum(self, values: list[str]) -> str:
        total = values[0]
        for value in values[1:]:
            total = self.add("add", [total, value], self.rank, "C", {})
        return total

    def layer(self, *, wild: bool) -> str:
        """Add branches one after the other to the stream."""
        stream = "x"
        for _ in range(self.rng.choice([1, 2, 2, 3])):
            # A branch reads the stream where it stands: what was there before is its own only at the start.
            self.values, self.loose, self.last = {stream: (self.rank, "C")}, [stream], stream
            for _ in range(self.rng.randint(1, 4)):
                self.step()
            branch = self.finish(wild=wild)
            stream = self.add("add", [stream, branch], self.rank, "C", {})
        return stream

    def low_rank(self) -> str:
        """Add linear maps side by side, each through fewer channels, and a tail of zeros."""
        ends = []
        for _ in range(self.rng.choice([1, 1, 2])):
            value = self.affine("x", "r", bias=False)
            if self.rng.random() < 0.3:
                value = self.affine(value, "r", bias=False)
            if self.rng.random() < 0.3:
                value = self.add("scale_const", [value], self.rank, "r", {"value": self.rng.choice([0.5, -1.0, 2.0])})
            ends.append(value)
        if len(ends) == 2:
            op = self.rng.choice(["concat", "add", "sub"])
            ends = [self.add(op, ends, self.rank, "2*r" if op == "concat" else "r", {})]
        return self.affine(ends[0], "C", bias=False, init="zeros", role="tail")

    def width(self) -> str:
        value = self.affine("x", "r")
        value = self.add(self.rng.choice(ACTIVATIONS), [value], self.rank, "r", {})
        return self.affine(value, "C", bias=False, init="zeros", role="tail")


def random_graph(rng: Random, *, wild: bool = False) -> tuple[Blueprint, SiteSignature]:
    """Return a random blueprint with true claims, and a site for it.

    Args:
        rng: Where choices come from.
        wild: Break the tail rule and causality now and then.
    """
    document = random_document(rng, wild=wild)
    return with_claims(parse(json.dumps(document))), random_site(rng, document)


def random_document(rng: Random, *, wild: bool) -> Document:
    """Return a blueprint as JSON data; its claims are not computed yet."""
    kind = rng.choice(["residual"] * 6 + ["gate", "layer", "layer", "lowrank_weight", "width"])
    rank = rng.choice(["NC", "NTC"] if kind in {"lowrank_weight", "width"} else sorted(POSITIONS))
    causal = rng.random() < 0.4
    reads_input = KINDS[kind].reads == "input"
    keeps_order = causal and not (wild and rng.random() < 0.5)
    grower = Grower(rng, rank, causal=keeps_order, entry="D" if reads_input else "C")
    if kind == "layer":
        out = grower.layer(wild=wild)
    elif kind == "lowrank_weight":
        out = grower.low_rank()
    elif kind == "width":
        out = grower.width()
    else:
        for _ in range(rng.randint(1, 8)):
            grower.step()
        out = grower.finish(wild=wild)
    symbols = {"C": "site.channels", "r": {"int": [4, 128], "bucket": 4, "default": rng.choice(["C//4", "C//2"])}}
    return {
        "ir": 1,
        "id": "random",
        "kind": kind,
        "site": {"rank": rank, "causal": causal},
        "symbols": symbols | POSITION_SYMBOLS[rank] | ({"D": "site.in_channels"} if reads_input else {}),
        "nodes": grower.nodes,
        "out": out,
        "merge": KINDS[kind].merge,
        "claims": {"preserves": "exact@alpha0,exact@birth", "params": 0, "flops": 0},
    }


def random_site(rng: Random, document: Document) -> SiteSignature:
    """Return a site that a blueprint fits; a few are wide."""
    kind, rank = document["kind"], document["site"]["rank"]
    wide = rng.random() < 0.06
    reads_input = KINDS[kind].reads == "input"
    site = "pair" if kind == "width" else "linear" if reads_input else rng.choice(SITES[rank])
    return SiteSignature(
        kind=site,
        rank=rank,
        channels=rng.choice(WIDE[rank] if wide else CHANNELS),
        in_channels=rng.choice(CHANNELS) if site in {"linear", "pair", "conv1d", "conv2d"} else None,
        positions=POSITIONS[rank][0] if wide else rng.choice(POSITIONS[rank]),
        causal=document["site"]["causal"] and rng.random() < 0.5,
        dtype=rng.choice(["float32"] * 8 + ["float64"] * 2 + ["bfloat16"]),
    )
