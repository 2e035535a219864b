"""The draw of one action from a distribution, repeatable from three integers.

Belongs here: the counter-based generator and the exact inversion. Does not belong here: how probabilities come about.

Philox4x64-10 is the generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), written out on
Python integers so that an auditor can redraw without numpy. It gives the numbers of ``numpy.random.Philox`` with the
same key and counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from esper.errors import ConfigError
from esper.events.decision import RandomDraw
from esper.tamiyo.policy import require_distribution

ALGORITHM = "philox4x64"

_MASK = (1 << 64) - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


def draw(probabilities: Sequence[float], run_seed: int, decision: int) -> tuple[int, float, RandomDraw]:
    """Draw one action.

    Args:
        probabilities: A policy's answer.
        run_seed: Seed of the run, from 0 to 2**64 - 1.
        decision: Number of the decision in the run; with the seed it is the generator's whole state, so the draw does
            not depend on how many draws went before.

    Returns:
        Index of the chosen action, the uniform number in [0, 1) it was chosen with, and where that number came from.

    Raises:
        PolicyInvalid: The probabilities are no distribution.
        ConfigError: Seed or decision do not fit in 64 bits.
    """
    require_distribution(probabilities)
    source = RandomDraw(algorithm=ALGORITHM, key=[run_seed, decision], counter=0)
    uniform = redraw(source)
    return invert(probabilities, uniform), uniform, source


def redraw(source: RandomDraw) -> float:
    """Return the uniform number in [0, 1) that a logged source gives: the top 53 bits of the block's first word.

    Raises:
        ConfigError: The algorithm is not known, or key or counter do not fit in 64 bits.
    """
    if source.algorithm != ALGORITHM:
        raise ConfigError(
            f"random algorithm {source.algorithm!r} is not known", hint=f"this Esper draws with {ALGORITHM}"
        )
    if len(source.key) != 2 or not all(0 <= word <= _MASK for word in (*source.key, source.counter)):
        raise ConfigError(
            f"random key {source.key} with counter {source.counter} is not two 64-bit words and a counter",
            hint="the run's seed and the decision number lie between 0 and 2**64 - 1",
        )
    # numpy counts on before it makes a block: its counter 0 gives the block of 1.
    first = _philox((source.counter + 1) & _MASK, source.key[0], source.key[1])
    return (first >> 11) * 2.0**-53


def invert(probabilities: Sequence[float], uniform: float) -> int:
    """Return the action whose interval holds a uniform number.

    Action k holds ``[c(k-1), c(k))`` of the cumulative sums, in exact rational arithmetic and scaled to their true
    total: no rounding can choose an action of probability 0 or run past the end.

    Args:
        probabilities: A distribution.
        uniform: A number in [0, 1).

    Raises:
        ConfigError: The number is outside [0, 1).
    """
    if not 0.0 <= uniform < 1.0:
        raise ConfigError(f"uniform number {uniform!r} is outside [0, 1)", hint="the record of this draw is damaged")
    parts = [Fraction(probability) for probability in probabilities]
    target = Fraction(uniform) * sum(parts)
    cumulative = Fraction(0)
    index = -1
    while cumulative <= target:
        index += 1
        cumulative += parts[index]
    return index


def _philox(counter: int, key_low: int, key_high: int) -> int:
    """Return the first 64-bit word of the block at a counter below 2**64."""
    words = (counter, 0, 0, 0)
    for _ in range(_ROUNDS):
        low_product = _MULTIPLIERS[0] * words[0]
        high_product = _MULTIPLIERS[1] * words[2]
        words = (
            (high_product >> 64) ^ words[1] ^ key_low,
            high_product & _MASK,
            (low_product >> 64) ^ words[3] ^ key_high,
            low_product & _MASK,
        )
        key_low = (key_low + _WEYL[0]) & _MASK
        key_high = (key_high + _WEYL[1]) & _MASK
    return words[0]
