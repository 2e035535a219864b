"""The port every controller stands behind, and what its answer must look like.

Belongs here: the ``Policy`` protocol, the check of a distribution, and the small arithmetic that all policies share.
Does not belong here: any rule of choice (``ladder`` and the modules beside it), what may be done (``legal``) or the
draw (``draw``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from esper.errors import PolicyInvalid
from esper.events.decision import Action, Observation
from esper.ids import sha256

#: How far the sum of a distribution may be from 1.
SUM_TOLERANCE = 1e-12


class Policy(Protocol):
    """What chooses: a distribution over the legal actions, never a single one.

    A policy is a pure function of its settings, the kernels it was made with, the observation and the legal list. It
    holds no state between decisions and draws nothing itself, so what it gives can be logged and drawn again.
    """

    @property
    def policy_id(self) -> str:
        """Return the name of the policy."""
        ...

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of what makes this policy behave as it does (32 bytes)."""
        ...

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:
        """Return the probability of each legal action.

        Args:
            observation: What is known at this decision.
            legal: Actions that can be taken, in canonical order; never empty, NOOP first.

        Returns:
            As many float64 as there are legal actions, none below 0, with sum 1 within 1e-12.
        """
        ...


@runtime_checkable
class Foresighted(Protocol):
    """A policy that leans to some kernels before it has seen anything, so that they can be brought ahead."""

    def likely(self) -> list[str]:
        """Return ids of the kernels it was made with that it may choose, the likeliest first."""
        ...


def rule_digest(name: str, rules: int, settings: msgspec.Struct) -> bytes:
    """Return the digest of a policy made of rules: SHA-256 of the msgpack of name, rule version and settings.

    Args:
        name: Name of the policy.
        rules: Version of its rules in code; raised when the same settings would give other probabilities.
        settings: Its settings; fields in declared order.
    """
    return sha256(msgspec.msgpack.encode((name, rules, settings)))


def mixture(weights: Mapping[int, float], size: int, floor: float = 0.0) -> list[float]:
    """Turn weights on some of the legal actions into a distribution over all of them.

    ``p = floor + (1 - n * floor) * weight / total`` for each of the ``n`` weighted actions, exactly 0 for the others.

    Args:
        weights: Index in the legal list to weight; at least one, all finite and positive.
        size: Number of legal actions.
        floor: Least probability of each weighted action; ``n * floor`` must be below 1.
    """
    total = math.fsum(weights.values())
    free = 1.0 - len(weights) * floor
    probabilities = [0.0] * size
    for index, weight in weights.items():
        probabilities[index] = floor + free * (weight / total)
    return probabilities


def certain(index: int, size: int) -> list[float]:
    """Return the distribution that always takes one action."""
    return mixture({index: 1.0}, size)


def require_distribution(probabilities: Sequence[float], size: int | None = None) -> None:
    """Check that a policy's answer is a distribution over the legal actions.

    Args:
        probabilities: The policy's answer.
        size: Number of legal actions, or None where it is not known.

    Raises:
        PolicyInvalid: Wrong length, an entry that is no finite number of at least 0, or a sum other than 1.
    """
    if not probabilities or (size is not None and len(probabilities) != size):
        raise PolicyInvalid(
            f"a policy gave {len(probabilities)} probabilities for {size if size is not None else 'some'} actions",
            hint="`Policy.decide` gives one probability for each legal action",
        )
    for index, probability in enumerate(probabilities):
        if not math.isfinite(probability) or probability < 0.0:
            raise PolicyInvalid(
                f"a policy gave {probability!r} as the probability of legal action {index}",
                hint="probabilities are finite and at least 0",
            )
    total = math.fsum(probabilities)
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise PolicyInvalid(
            f"a policy's probabilities sum to {total!r}, not to 1",
            hint=f"the sum may be off by {SUM_TOLERANCE:g} at most; divide by math.fsum",
        )
