"""What a blueprint costs at a site, computed from its graph; there is no table of constants.

Belongs here: the numbers others ask for: parameters, FLOPs, and how fast the branch may learn. Does not belong here:
the rules per operator (``ops``, ``moments``) or seconds (``crucible``).
"""

from __future__ import annotations

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.moments import first_step
from esper.blueprints.verify import verify

#: Learning rates at which a branch's first step is judged; for Adam torch's default.
ADAM_RATE = 1e-3
SGD_RATE = 1e-2
#: A branch whose first step at that rate is expected to change more of its site's output than this learns slower. It
#: stands below what the crucible allows (``trials.JUMP_LIMIT``), since an expectation can be off.
FIRST_STEP_FRAC = 0.035
#: A branch that would need less is not tamed by its learning rate: the crucible rejects it.
LEAST_FACTOR = 2.0**-8


def parameters(blueprint: Blueprint, signature: SiteSignature) -> int:
    """Return the number of trained parameters at a site.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
    """
    return verify(blueprint, signature).parameters or 0


def flops(blueprint: Blueprint, signature: SiteSignature) -> int:
    """Return the forward FLOPs of one sample at a site, 1 multiply-accumulate = 2.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
    """
    return verify(blueprint, signature).flops or 0


def rate_factor(blueprint: Blueprint, signature: SiteSignature) -> float:
    """Return what a seed's learning rate is multiplied by, next to its host's: 1, or a power of two below it.

    Adam moves each weight by about the learning rate, so what a tail adds after its first step grows with the number
    of its inputs. Dividing the rate by that number keeps the step alike at every width (the rule for output layers of
    Yang et al. 2022, "Tensor Programs V"); here the number is the whole branch's expected first step (``moments``).
    Powers of two are exact, so that the factor is the same on every machine.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
    """
    expected = first_step(verify(blueprint, signature), signature)
    step = max(ADAM_RATE * expected.adam, SGD_RATE * expected.sgd)
    factor = 1.0
    while factor > LEAST_FACTOR and step * factor > FIRST_STEP_FRAC:
        factor /= 2.0
    return factor
