"""Observations and kernels for tests of Tamiyo."""

from __future__ import annotations

from esper.events.decision import Observation, SeedObservation, SiteObservation
from esper.tamiyo import KernelOption

NAMES = ("affine", "conv_bottleneck_1d", "lora", "noop", "pw_bottleneck_1d")
PARAMETERS = {"affine": 16, "conv_bottleneck_1d": 300, "lora": 120, "noop": 0, "pw_bottleneck_1d": 200}
PATHS = ("body.0", "body.1", "body.2", "head")


def option(name: str, site: str = "") -> KernelOption:
    """Return a kernel option whose ids follow from name and site."""
    parameters = PARAMETERS[name]
    return KernelOption(
        kernel_id=f"kernel-{name}-{site}",
        blueprint_id=f"blueprint-{name}",
        name=name,
        parameters=parameters,
        flops=parameters * 80,
    )


def all_kernels(paths: tuple[str, ...] = PATHS) -> dict[str, list[KernelOption]]:
    """Return every kernel at every site, names out of order."""
    return {path: [option(name, path) for name in reversed(NAMES)] for path in paths}


def site(path: str, depth: int, deepest: int, *, zr: float | None = 0.1, seeds_present: int = 0) -> SiteObservation:
    """Return a site with telemetry."""
    return SiteObservation(
        site=path,
        kind="conv1d",
        depth=depth,
        depth_frac=depth / deepest if deepest else 0.0,
        parameters=100,
        flops=8000,
        gradient_norm=0.2,
        zr=zr,
        zr_over_wgrad=None,
        effective_rank=None,
        dormant_frac=None,
        signal_to_noise=None,
        activation_variance=None,
        dead_frac=None,
        mean_correlation=None,
        seeds_present=seeds_present,
        alpha=0.0,
    )


def seed(
    seed_id: str,
    path: str,
    state: str,
    *,
    gain: float | None = None,
    stderr: float | None = None,
    steps: int = 100,
    parameters: int = 300,
) -> SeedObservation:
    """Return a seed in a state."""
    return SeedObservation(
        seed_id=seed_id,
        site=path,
        blueprint_id="blueprint-lora",
        kernel_id=f"kernel-lora-{path}",
        state=state,
        alpha=1.0,
        steps_in_state=steps,
        parameters=parameters,
        gain=gain,
        gain_stderr=stderr,
    )


def observation(
    *,
    step: int = 500,
    total_steps: int = 2000,
    sites: list[SiteObservation] | None = None,
    seeds: list[SeedObservation] | None = None,
    germinated: int | None = None,
    train_loss: float = 0.8,
    validation: tuple[float, ...] = (1.2, 1.0, 0.9),
    parameters: int = 1000,
) -> Observation:
    """Return what a policy sees; by default a quarter into a healthy run with four free sites."""
    deepest = len(PATHS) - 1
    seeds = seeds or []
    return Observation(
        step=step,
        total_steps=total_steps,
        epoch=step // 100,
        train_loss=train_loss,
        validation_loss=validation[-1] if validation else None,
        recent_train_losses=[train_loss],
        recent_validation_losses=list(validation),
        parameters=parameters,
        initial_parameters=1000,
        germinated=len(seeds) if germinated is None else germinated,
        sites=[site(path, depth, deepest) for depth, path in enumerate(PATHS)] if sites is None else sites,
        seeds=seeds,
    )
