"""Sound blueprints broken in one way each: in the document, which the verifier must refuse, or in the built module,
where a check of the crucible must notice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from random_graphs import Document
from torch import fx, nn

from esper.blueprints.canonical import canonical_json
from esper.blueprints.ir import Blueprint
from esper.blueprints.ops import OPS

#: Breaks a document in place, or returns False where it offers nothing to break.
Break = Callable[[Document], bool]


def as_document(blueprint: Blueprint) -> Document:
    """Return a blueprint as JSON data, claims true, inputs before their readers."""
    document: Document = json.loads(canonical_json(blueprint))
    return document


def behind_out(op: str, *, more: Document | None = None) -> Break:
    """Let ``out`` pass one more operator."""

    def broken(document: Document) -> bool:
        rank = document["site"]["rank"]
        rank = rank if isinstance(rank, str) else rank[0]
        if rank not in OPS[op].ranks:
            return False
        node = {"id": "broken", "op": op, "in": [document["out"]]} | (more or {})
        document["nodes"].append(node)
        document["out"] = "broken"
        return True

    return broken


def norm_behind_tail(document: Document) -> bool:
    last = document["site"]["rank"][0] in {"NC", "NTC"}
    return behind_out("layernorm" if last else "groupnorm")(document)


def second_zero(document: Document) -> bool:
    return behind_out("scale", more={"init": "zeros", "role": "tail"})(document)


def tails(document: Document) -> list[Document]:
    return [node for node in document["nodes"] if node.get("role") == "tail"]


def drawn_tail(document: Document) -> bool:
    """Draw a tail's weights as those of any other layer."""
    tail = tails(document)[0]
    del tail["role"]
    tail["init"] = "ones" if tail["op"] == "scale" else "kaiming"
    return True


def unmarked_tail(document: Document) -> bool:
    del tails(document)[0]["role"]
    return True


def claim(key: str) -> Break:
    def broken(document: Document) -> bool:
        document["claims"][key] = f"{document['claims'][key]}+1"
        return True

    return broken


def order_lost(document: Document) -> bool:
    """Let a branch that keeps the order of time look around."""
    for node in document["nodes"]:
        attr = node.get("attr", {})
        if document["site"]["causal"] and attr.get("causal") and attr.get("k", 2) > 1 and node["op"] != "mean_pool":
            attr["causal"] = False
            if "pad" in attr:
                attr["pad"] = attr["dilation"] * (attr["k"] - 1) // 2
                return attr["dilation"] * (attr["k"] - 1) % 2 == 0
            return True
    return False


def another_width(document: Document) -> bool:
    """Let a tail have one channel more, where no other layer makes good for it."""
    for tail in tails(document):
        behind = {tail["id"]}
        for node in document["nodes"]:
            if behind & set(node["in"]):
                behind.add(node["id"])
                if "out" in node["attr"]:
                    return False
        if "out" in tail["attr"]:
            tail["attr"]["out"] = "C+1"
            return True
    return False


def cycle(document: Document) -> bool:
    document["nodes"][0]["in"][0] = document["out"]
    return True


def leftover(document: Document) -> bool:
    document["nodes"].append({"id": "broken", "op": "identity", "in": ["x"]})
    return True


def placebo(document: Document) -> bool:
    """Cut all parameters off by the operator zero."""
    if document["kind"] in {"layer", "width"}:
        return False
    behind_out("zero", more={"role": "tail"})(document)
    return True


def cancelled(document: Document) -> bool:
    document["nodes"].append({"id": "broken", "op": "sub", "in": [document["out"]] * 2})
    document["out"] = "broken"
    return True


def unknown_operator(document: Document) -> bool:
    document["nodes"][-1]["op"] = "batchnorm"
    return True


#: How a document is broken, and the rules it may be refused by.
DOCUMENT_BREAKS: dict[str, tuple[Break, set[str]]] = {
    "tail drawn at random": (drawn_tail, {"missing_tail", "stream", "after_tail", "zeros_in_series"}),
    "tail not marked": (unmarked_tail, {"role"}),
    "norm behind the tail": (norm_behind_tail, {"after_tail", "stream", "not_foldable", "width_form"}),
    "relu behind the tail": (behind_out("relu"), {"after_tail", "stream", "not_foldable", "width_form"}),
    "sigmoid behind the tail": (behind_out("sigmoid"), {"after_tail", "stream", "not_foldable", "width_form"}),
    "softmax behind the tail": (behind_out("softmax"), {"after_tail", "stream", "not_foldable", "width_form"}),
    "a second zero in series": (second_zero, {"zeros_in_series", "stream", "not_foldable", "width_form"}),
    "parameters claimed one off": (claim("params"), {"claims_params"}),
    "FLOPs claimed one off": (claim("flops"), {"claims_flops"}),
    "the causal flag dropped": (order_lost, {"causality"}),
    "another number of channels": (another_width, {"output_shape", "shape"}),
    "a cycle": (cycle, {"cycle"}),
    "a node that leads nowhere": (leftover, {"multiple_sinks"}),
    "parameters cut off": (placebo, {"placebo", "zeros_in_series", "not_foldable"}),
    "out less itself": (cancelled, {"cancelled", "stream", "width_form"}),
    "a norm over the batch": (unknown_operator, {"cross_batch"}),
}


class Offset(nn.Module):
    """Not zero at birth."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + 1e-3


class Narrower(nn.Module):
    """Another shape."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h[:, :-1]


class WithWeight(nn.Module):
    """One parameter that the blueprint does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.weight.to(h.dtype)


class Doubled(nn.Module):
    """Computes something else than its blueprint."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2


class ByMode(nn.Module):
    """Behaves differently in training."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if self.training else h


class ByPlace(nn.Module):
    """Depends on a sample's place in the batch."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.arange(1.0, len(h) + 1).reshape(-1, *[1] * (h.dim() - 1)).to(h.dtype)


class ByCompany(nn.Module):
    """Depends on the other samples of the batch, whatever their order."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h - h.mean(0)


class ByFuture(nn.Module):
    """Lets a position see the next one."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.roll(h, -1, dims=self.axis)


class Bent(nn.Module):
    """Not linear, and so not to be folded."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h)


def with_layer(module: fx.GraphModule, layer: nn.Module) -> fx.GraphModule:
    """Return a built module with a further layer behind its output."""
    broken = copy.deepcopy(module)
    broken.add_module("broken", layer)
    out = next(node for node in broken.graph.nodes if node.op == "output")
    with broken.graph.inserting_before(out):
        out.args = (broken.graph.call_module("broken", (out.args[0],)),)
    broken.recompile()
    return broken


#: Structural check -> a layer behind a sound branch that has to make it fail.
MODULE_BREAKS: dict[str, list[Callable[[], nn.Module]]] = {
    "birth_identity": [Offset],
    "shape": [Narrower],
    "parameters": [WithWeight],
    "rebuild": [WithWeight, Doubled],
    "train_equals_eval": [ByMode],
    "batch_permutation": [ByPlace, ByCompany],
    "fold": [Bent],
}
