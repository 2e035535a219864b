"""Measure many random graphs and count what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import torch
from random_graphs import random_graph

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.crucible import characterize
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid

#: What the verifier promises. Whatever else a kernel fails was not promised, only measured.
STRUCTURAL = {
    "shape",
    "birth_identity",
    "parameters",
    "rebuild",
    "train_equals_eval",
    "batch_permutation",
    "causality",
    "fold",
}


def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refused_for(blueprint: Blueprint, signature: SiteSignature) -> str | None:
    """Return the rule the verifier refuses a graph for, or None."""
    try:
        verify(blueprint, signature)
    except BlueprintInvalid as error:
        return error.rule
    return None


class Survey:
    """What became of the graphs that were measured."""

    def __init__(self) -> None:
        self.accepted = 0
        #: Rule -> graphs refused for it.
        self.refused: Counter[str] = Counter()
        #: Structural check -> numbers of the graphs that failed it.
        self.structural: dict[str, list[int]] = {}
        #: Measured check -> numbers of the graphs that failed it.
        self.measured: dict[str, list[int]] = {}

    @property
    def failed(self) -> set[int]:
        """Return the graphs that failed a measured check."""
        return {number for numbers in self.measured.values() for number in numbers}

    def measure(self, number: int) -> None:
        blueprint, signature = random_graph(Random(number))
        refusal = refused_for(blueprint, signature)
        if refusal is not None:
            self.refused[refusal] += 1
            return
        self.accepted += 1
        for check in characterize(build(blueprint, signature, seed=number), blueprint, signature).failed:
            counted = self.structural if check in STRUCTURAL else self.measured
            counted.setdefault(check, []).append(number)

    def report(self) -> str:
        """Return the list of failures: name, count, one example to give to ``random_graph(Random(...))``."""
        lines = [f"{self.accepted} graphs accepted, {self.refused.total()} refused {dict(self.refused)}"]
        for title, failures in (("structural", self.structural), ("measured", self.measured)):
            for name, numbers in sorted(failures.items()):
                lines.append(f"  {title} {name}: {len(numbers)}, e.g. graph {numbers[0]}")
        return "\n".join([*lines, f"  failed a measurement: {len(self.failed) / max(1, self.accepted):.2%}"])
