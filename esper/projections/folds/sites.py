"""From site facts to sites, kernel_offers and site_health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.envelope import Recorded
from esper.events.seed import KernelsOffered, SeedHealthMeasured, SiteRegistered
from esper.projections.staging import Staging
from esper.projections.values import canonical, real


class SiteFold:
    """Follows the places in a host where seeds can be grafted."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._sites = staging.rows["sites"].append
        self._offers = staging.rows["kernel_offers"].append
        self._health = staging.rows["site_health"].append

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            SiteRegistered: self.registered,
            KernelsOffered: self.offered,
            SeedHealthMeasured: self.measured,
        }

    def registered(self, envelope: Recorded, fact: SiteRegistered) -> None:
        """Append a site."""
        self._sites(
            (
                fact.run_id,
                fact.site,
                fact.attempt,
                envelope.position,
                fact.kind,
                fact.depth,
                canonical(fact.signature, envelope.payload),
                fact.parameters,
                fact.flops,
            )
        )

    def offered(self, envelope: Recorded, fact: KernelsOffered) -> None:
        """Append the kernels on offer at a site."""
        for place, offer in enumerate(fact.offers):
            self._offers(
                (
                    fact.run_id,
                    fact.site,
                    fact.attempt,
                    envelope.position,
                    place,
                    offer.kernel_id,
                    offer.blueprint_id,
                    offer.name,
                    offer.parameters,
                    offer.flops,
                )
            )

    def measured(self, envelope: Recorded, fact: SeedHealthMeasured) -> None:
        """Append one probe's measurements of a site."""
        self._health(
            (
                fact.run_id,
                fact.step,
                envelope.position,
                fact.attempt,
                fact.site,
                fact.depth,
                fact.parameters,
                fact.flops,
                real(fact.gradient_norm),
                real(fact.zr),
                real(fact.zr_over_wgrad),
                real(fact.effective_rank),
                real(fact.dormant_frac),
                real(fact.signal_to_noise),
                real(fact.activation_variance),
                real(fact.dead_frac),
                real(fact.mean_correlation),
                fact.seeds_present,
                real(fact.alpha),
                None,
            )
        )
