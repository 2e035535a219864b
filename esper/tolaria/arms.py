"""The runs a grown run is compared with: the same host without growth, and its final architecture from scratch.

Both arms see the same data in the same order from the same host seed; only growth differs.
"""

from __future__ import annotations

import msgspec

from esper.errors import ConfigError
from esper.events import fact_of
from esper.events.lifecycle import SeedState
from esper.events.seed import SeedTransitioned
from esper.oona.port import EventLog, iterate_stream
from esper.tolaria.config import Birth, RunConfig

NO_GROWTH = "no-growth"
FROM_SCRATCH = "from-scratch"


def without_growth(config: RunConfig, run_id: str) -> RunConfig:
    """Return the configuration of the arm that trains the host alone."""
    return msgspec.structs.replace(config, policy="off", policy_settings={}, arm=NO_GROWTH, compare_to=run_id)


def from_scratch(config: RunConfig, run_id: str, log: EventLog) -> RunConfig:
    """Return the configuration of the arm that trains a run's final architecture from its first step.

    The seeds that the run kept are part of the host from the start, at full alpha, initialised as their kernels are
    (with their zero tails, which is the gentler choice for this arm).

    Raises:
        ConfigError: The run kept no seed, so there is no architecture to compare with.
    """
    born = [
        Birth(site=seed.site, blueprint_id=seed.blueprint_id, kernel_id=seed.kernel_id)
        for seed in kept_seeds(log, run_id)
        if seed.blueprint_id is not None and seed.kernel_id is not None
    ]
    if not born:
        raise ConfigError(f"run {run_id} kept no seed", hint="`esper seed list` shows what became of its seeds")
    return msgspec.structs.replace(
        config,
        policy="off",
        policy_settings={},
        arm=FROM_SCRATCH,
        compare_to=run_id,
        born=born,
        graft=msgspec.structs.replace(config.graft, ramp_steps=0, settle_steps=0, learning="joint"),
    )


def kept_seeds(log: EventLog, run_id: str) -> list[SeedTransitioned]:
    """Return the last move of each seed that ended fossilised, in order of seed id."""
    last: dict[str, SeedTransitioned] = {}
    for envelope in iterate_stream(log, f"run/{run_id}"):
        if envelope.type == SeedTransitioned.info.name:
            fact = fact_of(envelope)
            if isinstance(fact, SeedTransitioned):
                last[fact.seed_id] = fact
    return [one for _, one in sorted(last.items()) if one.target == SeedState.FOSSILIZED]
