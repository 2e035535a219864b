"""What a blueprint costs at a site, computed from its graph; there is no table of constants.

Belongs here: the two numbers others ask for. Does not belong here: the rules per operator (``ops``) or seconds
(``crucible``).
"""

from __future__ import annotations

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.verify import verify


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
