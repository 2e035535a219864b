"""Every kernel in the library trains when grafted, on MLP, CNN and transformer hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.grafting import TASKS, Warm
from esper.blueprints.library import load_library
from esper.tolaria.determinism import Flags, using
from tests.library_trials import check_gradients_and_contribution, check_loss_falls

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

#: Steps the host is trained before, steps of the branch alone, and steps of host and branch together.
WARM_STEPS, ALONE_STEPS, JOINT_STEPS = 100, 50, 150
#: Kinds of site each task's host must offer to some blueprint: what the claim above stands on.
KINDS = {
    "mnist1d_mlp": {"linear", "pair_relu"},
    "mnist1d": {"conv1d"},
    "digits": {"conv2d"},
    "bytelm": {"linear", "norm", "pair_gelu"},
}


@pytest.fixture(scope="module")
def warm() -> Iterator[dict[str, Warm]]:
    with using(Flags()):
        yield {task: Warm(task, 0, WARM_STEPS) for task in TASKS}


def test_every_blueprint_fits_some_host_and_every_host_takes_some(warm: dict[str, Warm]) -> None:
    library = load_library()
    homes = {name: [task for task in TASKS if warm[task].places_of(one)] for name, one in library.items()}
    assert [name for name, found in homes.items() if not found] == []
    for task, kinds in KINDS.items():
        assert kinds <= {place.kind for one in library.values() for place in warm[task].places_of(one)}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", sorted(load_library()))
def test_gradient_reaches_every_part_and_the_loss_falls(warm: dict[str, Warm], name: str, task: str) -> None:
    blueprint = load_library()[name]
    places = warm[task].places_of(blueprint)
    for place in places:
        check_gradients_and_contribution(warm[task], blueprint, place, steps=ALONE_STEPS)
    for place in places[:1]:
        check_loss_falls(warm[task], blueprint, place, steps=JOINT_STEPS)
