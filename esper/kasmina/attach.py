"""Make a host ready to grow.

Belongs here: the public entry. Does not belong here: the handle it returns (``esper.kasmina.growth``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from esper.kasmina.growth import Growth
from esper.kasmina.life import Emit


def attach(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    sites: Sequence[str] | None = None,
    emit: Emit | None = None,
    causal: bool | None = None,
    max_per_site: int = 2,
) -> Growth:
    """Make a host ready to grow, in place and without changing anything it computes.

    Args:
        model: The host, on the device it trains on.
        example_inputs: Positional arguments for one forward pass that finds the sites now, leaving no trace in the
            host; without it the first forward pass in training mode (or with gradients) is watched instead.
        sites: Paths of the only modules to offer, including the host's last layer if named. None offers all that fit
            but that one: growth behind the last layer rarely makes sense.
        emit: Called as ``emit(FactClass, **fields)`` for each fact; None drops them.
        causal: Whether seeds at sites with positions must not look ahead. None says yes for sequences of tokens
            (rank NTC), where it is right in every host, and no for NCL and NCHW; say True for causal convolutions.
        max_per_site: Seeds one site may carry in the whole run.

    Raises:
        SiteUnsupported: The host is scripted or compiled, or a named site cannot carry a seed.
    """
    growth = Growth(model, sites=sites, emit=emit, causal=causal, max_per_site=max_per_site)
    growth.discover(example_inputs)
    return growth
