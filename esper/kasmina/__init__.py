"""Growth inside a host model: sites, seeds, their life, what is measured of them."""

from esper.kasmina.attach import attach
from esper.kasmina.growth import Growth
from esper.kasmina.seed import Seed
from esper.kasmina.site import Site

__all__ = ["Growth", "Seed", "Site", "attach"]
