"""``esper.run`` around a loop that is the user's own: what is recorded, grown, restored and refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.errors import ConfigError, GrowthError, NotFound, UnknownSetting
from esper.events.decision import DecisionExecuted, DecisionMade, Schedule
from esper.events.lifecycle import SeedState
from esper.events.run import (
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import SeedFolded, SeedTransitioned, SiteRegistered
from esper.kasmina.fold import detach
from esper.tolaria.checkpoint import tensor_digest
from esper.tolaria.task import samples_digest
from tests.tiny_tasks import small_host
from tests.training import Place, place

STEPS = 60
SETTINGS: dict[str, Any] = {
    "policy": "earliest-site",
    "steps_per_epoch": 10,
    "probe_every": 30,
    "graft": Schedule(ramp_steps=5, settle_steps=5, fade_steps=5, embargo_steps=20),
    "blueprints": ["res_mlp"],
}

_POINTS = torch.Generator().manual_seed(3)
TARGETS = torch.arange(96) % 3
INPUTS = torch.randn(3, 8, generator=_POINTS)[TARGETS] + 0.8 * torch.randn(96, 8, generator=_POINTS)
EXAMPLE = (INPUTS[:16],)


def losses(model: nn.Module) -> tuple[Tensor, Tensor]:
    outputs = model(INPUTS[64:])
    return F.cross_entropy(outputs, TARGETS[64:], reduction="none"), outputs.argmax(1) == TARGETS[64:]


def ids_of(step: int) -> Tensor:
    return (torch.arange(16) + 16 * step) % 64


def own() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Return a model and its optimiser, the same each time."""
    torch.manual_seed(5)
    model = small_host()
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def loop(run: esper.tolaria.Run, *, until: int = STEPS) -> None:
    """Train as a user would, from where the run stands."""
    while run.steps_done < until:
        ids = ids_of(run.steps_done)
        run.step(F.cross_entropy(run.model(INPUTS[ids]), TARGETS[ids]))


def loop_then_raise(run: esper.tolaria.Run, until: int, error: BaseException) -> None:
    loop(run, until=until)
    raise error


def begin(home: Path, **changes: Any) -> esper.tolaria.Run:
    model, optimizer = own()
    arguments = {"total_steps": STEPS, "evaluate": losses, "home": str(home), **SETTINGS, **changes}
    return esper.run(model, optimizer, **arguments)


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the kernels are compiled and one whole run is recorded, without example inputs."""
    home = tmp_path_factory.mktemp("forged")
    with begin(home, test=losses, batch_ids=[ids_of(step) for step in range(STEPS)]) as run:
        loop(run)
    torch.save(run.model, home / "model.pt")
    with torch.no_grad():
        torch.save((run.run_id, run.model.eval()(INPUTS)), home / "expected.pt")
    return home


@pytest.fixture
def where(forged: Path) -> Iterator[Place]:
    opened = place(forged)
    yield opened
    opened.log.close()


def facts(home: Path, run_id: str, cls: type) -> list[Any]:
    opened = place(home)
    found = [fact for fact in opened.of(cls) if fact.run_id == run_id]
    opened.log.close()
    return found


def recorded(forged: Path) -> str:
    run_id: str = torch.load(forged / "expected.pt")[0]
    return run_id


def test_a_whole_loop_is_recorded(forged: Path) -> None:
    run_id = recorded(forged)
    (started,) = facts(forged, run_id, RunStarted)
    assert (started.entry_point, started.task, started.dataset_digest) == (None, "custom", None)
    assert started.config["learning_rate"] == 1e-2
    assert [fact.step for fact in facts(forged, run_id, TrainingStepCompleted)] == list(range(1, STEPS + 1))
    assert [fact.step for fact in facts(forged, run_id, EpochCompleted)] == list(range(10, STEPS + 1, 10))
    assert len(facts(forged, run_id, DecisionMade)) == len(facts(forged, run_id, DecisionExecuted)) == STEPS // 10
    (finished,) = facts(forged, run_id, RunFinished)
    assert 0 < finished.test_accuracy <= 1


def test_sites_are_found_in_the_first_training_pass(forged: Path) -> None:
    assert [fact.site for fact in facts(forged, recorded(forged), SiteRegistered)] == ["0", "3", "3+5"]


def test_batch_ids_become_the_digests_of_the_steps(forged: Path) -> None:
    steps = facts(forged, recorded(forged), TrainingStepCompleted)
    assert [fact.samples_digest for fact in steps] == [samples_digest(ids_of(step)) for step in range(STEPS)]


def test_without_batch_ids_steps_have_no_digest(forged: Path) -> None:
    with begin(forged, policy="off", total_steps=5) as run:
        loop(run, until=5)
    assert {fact.samples_digest for fact in facts(forged, run.run_id, TrainingStepCompleted)} == {None}


def test_a_kept_seed_is_folded_without_example_inputs(forged: Path) -> None:
    run_id = recorded(forged)
    targets = [(fact.seed_id, fact.target) for fact in facts(forged, run_id, SeedTransitioned)]
    assert ("seed-1", SeedState.FOSSILIZED) in targets
    folded = facts(forged, run_id, SeedFolded)
    assert folded
    assert all(fact.max_difference < 1e-5 for fact in folded)


def test_the_grown_model_loads_and_computes_the_same_where_esper_is_not_installed(forged: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "sys.modules['esper'] = None\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "assert not any(name.startswith('esper') and module for name, module in sys.modules.items())\n"
        "torch.save(model.eval()(torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    torch.save(INPUTS, tmp_path / "inputs.pt")
    outputs = tmp_path / "outputs.pt"
    command = [sys.executable, "-c", code, str(forged / "model.pt"), str(tmp_path / "inputs.pt"), str(outputs)]
    subprocess.run(command, check=True, cwd=tmp_path)
    expected = torch.load(forged / "expected.pt")[1]
    assert torch.equal(torch.load(outputs), expected)


def test_the_grown_model_computes_what_the_growing_one_did(forged: Path) -> None:
    with begin(forged) as run:
        loop(run)
        with torch.no_grad():
            before = run.model.eval()(INPUTS)
        kept = [seed for seed in run.growth.attached() if seed.state is SeedState.FOSSILIZED]
        assert kept
        assert len(kept) == len(run.growth.attached())
    with torch.no_grad():
        after = run.model.eval()(INPUTS)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_batch_ids_that_end_early_are_an_error_and_the_step_is_not_taken(forged: Path) -> None:
    with (
        pytest.raises(ConfigError, match="batch_ids ended before step 4"),
        begin(forged, policy="off", batch_ids=[ids_of(step) for step in range(3)]) as run,
    ):
        loop(run)
    (failed,) = facts(forged, run.run_id, RunFailed)
    assert (failed.step, failed.error) == (3, "ConfigError")


@pytest.mark.parametrize("known", [True, False], ids=["with example inputs", "without"])
def test_a_loop_that_ends_early_is_paused_and_goes_on_to_the_same_bits(forged: Path, known: bool) -> None:
    example = EXAMPLE if known else None
    whole = begin(forged, example_inputs=example)
    with whole:
        loop(whole)
    first = begin(forged, example_inputs=example, batch_ids=[ids_of(step) for step in range(STEPS)])
    with first:
        loop(first, until=34)
    (paused,) = facts(forged, first.run_id, RunPaused)
    assert (paused.step, paused.reason) == (34, "the loop ended early")
    torch.manual_seed(99)  # another process has other random numbers and other weights
    other = small_host()
    second = esper.run(
        other,
        torch.optim.Adam(other.parameters(), lr=1e-2),
        total_steps=STEPS,
        evaluate=losses,
        restore=first.run_id,
        example_inputs=EXAMPLE,
        batch_ids=[ids_of(step) for step in range(STEPS)],
        home=str(forged),
        **SETTINGS,
    )
    with second:
        assert second.steps_done == 30
        loop(second)
    (resumed,) = facts(forged, first.run_id, RunResumed)
    assert (resumed.from_step, resumed.redone_steps) == (30, 4)
    assert tensor_digest(dict(second.model.state_dict())) == tensor_digest(dict(whole.model.state_dict()))
    digests = [facts(forged, run_id, RunFinished)[0].parameter_digest for run_id in (whole.run_id, first.run_id)]
    assert digests[0] == digests[1]
    steps = [fact for fact in facts(forged, first.run_id, TrainingStepCompleted) if fact.attempt == 2]
    assert steps[0].samples_digest == samples_digest(ids_of(30))


def test_restoring_at_step_zero_gives_the_same_bits(forged: Path) -> None:
    whole = begin(forged, example_inputs=EXAMPLE, policy="off", total_steps=15)
    with whole:
        loop(whole, until=15)
    first = begin(forged, example_inputs=EXAMPLE, policy="off", total_steps=15)
    with first:
        loop(first, until=3)
    second = begin(forged, example_inputs=EXAMPLE, policy="off", total_steps=15, restore=first.run_id)
    with second:
        assert second.steps_done == 0
        loop(second, until=15)
    digests = [facts(forged, run.run_id, RunFinished)[0].parameter_digest for run in (whole, first)]
    assert digests[0] == digests[1]


def test_an_exception_in_the_loop_is_recorded_and_raised_again(forged: Path) -> None:
    run = begin(forged, policy="off")
    with pytest.raises(ZeroDivisionError), run:
        loop_then_raise(run, 7, ZeroDivisionError("the user's own"))
    (failed,) = facts(forged, run.run_id, RunFailed)
    assert (failed.step, failed.error, failed.message) == (7, "ZeroDivisionError", "the user's own")
    assert len(facts(forged, run.run_id, TrainingStepCompleted)) == 7


def test_a_keyboard_interrupt_pauses(forged: Path) -> None:
    run = begin(forged, policy="off")
    with pytest.raises(KeyboardInterrupt), run:
        loop_then_raise(run, 7, KeyboardInterrupt())
    (paused,) = facts(forged, run.run_id, RunPaused)
    assert (paused.step, paused.reason) == (7, "stopped by KeyboardInterrupt")
    assert facts(forged, run.run_id, RunFailed) == []


def test_a_step_after_the_last_is_refused(forged: Path) -> None:
    run = begin(forged, policy="off", total_steps=2)
    with pytest.raises(ConfigError, match="has taken its 2 steps"), run:
        loop(run, until=3)


def test_a_step_before_the_model_was_called_is_refused(forged: Path) -> None:
    run = begin(forged)
    with pytest.raises(ConfigError, match="was not called in training"), run:
        run.step(run.model[0].weight.square().mean())


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"polcy": "off"}, UnknownSetting),
        ({"graft": {"ramp": 3}}, UnknownSetting),
        ({"policy": "clever"}, ConfigError),
        ({"policy_settings": {"speed": 3}}, UnknownSetting),
        ({"blueprints": ["nothing"]}, NotFound),
        ({"steps_per_epoch": 0}, ConfigError),
        ({"steps_per_epoch": "many"}, ConfigError),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_is_recorded(
    tmp_path: Path, setting: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error), begin(tmp_path, **setting):
        pass
    opened = place(tmp_path)
    assert opened.log.head().position == 0
    opened.log.close()


def test_a_site_that_does_not_exist_fails_the_run(tmp_path: Path) -> None:
    run = begin(tmp_path, sites=["nowhere"])
    with pytest.raises(GrowthError, match="nowhere"), run:
        pass
    assert len(facts(tmp_path, run.run_id, RunFailed)) == 1


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (torch.zeros(3, 2), r"shape \(3, 2\)"),
        (torch.tensor(0.5), r"shape \(\)"),
        (torch.zeros(0), r"shape \(0,\)"),
        (0.5, "float"),
        ((torch.zeros(3), torch.ones(2, dtype=torch.bool)), r"\(3,\) losses and \(2,\) answers"),
    ],
)
def test_an_evaluation_of_the_wrong_shape_is_named(forged: Path, answer: Any, named: str) -> None:
    run = begin(forged, policy="off", evaluate=lambda _: answer)
    with pytest.raises(ConfigError, match=named), run:
        loop(run)
    assert facts(forged, run.run_id, RunFailed)[0].step == 10


def test_a_test_that_raises_at_the_end_fails_the_run(forged: Path) -> None:
    def gives_way(_: nn.Module) -> Tensor:
        raise OSError("the test data is gone")

    run = begin(forged, policy="off", total_steps=2, test=gives_way)
    with pytest.raises(OSError, match="gone"), run:
        loop(run, until=2)
    assert facts(forged, run.run_id, RunFailed)[0].error == "OSError"
    assert facts(forged, run.run_id, RunFinished) == []


def test_restoring_an_unknown_run_is_not_found(forged: Path) -> None:
    with pytest.raises(NotFound, match="run-none"), begin(forged, restore="run-none", example_inputs=EXAMPLE):
        pass


def test_restoring_without_example_inputs_is_refused(forged: Path) -> None:
    with pytest.raises(ConfigError, match="example_inputs"):
        begin(forged, restore="run-none")


def test_restoring_a_finished_run_is_refused(forged: Path) -> None:
    with (
        pytest.raises(ConfigError, match="is finished"),
        begin(forged, restore=recorded(forged), example_inputs=EXAMPLE),
    ):
        pass


def test_restoring_with_other_settings_names_the_setting(forged: Path) -> None:
    first = begin(forged, policy="off", example_inputs=EXAMPLE)
    with first:
        loop(first, until=12)
    other = begin(forged, policy="off", example_inputs=EXAMPLE, restore=first.run_id, steps_per_epoch=12)
    with pytest.raises(ConfigError, match="steps_per_epoch 10 and cannot go on with 12"), other:
        pass
    assert facts(forged, first.run_id, RunResumed) == []


def test_a_rollback_restores_the_weights_and_goes_on_with_the_next_batch(forged: Path) -> None:
    seen: list[int] = []
    weights: dict[int, bytes] = {}
    run = begin(forged, example_inputs=EXAMPLE, probe_every=1000, total_steps=50)
    with run:
        while not run.done:
            step = run.steps_done
            weights[step] = tensor_digest(dict(run.model.state_dict()))
            seen.append(step)
            loss = F.cross_entropy(run.model(INPUTS[ids_of(step)]), TARGETS[ids_of(step)])
            seed = run.growth.seeds.get("seed-1")
            if seed is not None and seed.attached and seed.ramp.value > 0.5:
                loss = loss * float("nan")
            run.step(loss)
    assert seen == list(range(50))
    (tripped,) = facts(forged, run.run_id, GovernorTripped)
    (rolled,) = facts(forged, run.run_id, RolledBack)
    assert tripped.suspect_seed_id == rolled.culled_seed_id == "seed-1"
    assert rolled.to_step < rolled.from_step
    assert weights[rolled.from_step] == weights[rolled.to_step] != weights[rolled.from_step - 1]
    steps = facts(forged, run.run_id, TrainingStepCompleted)
    assert [fact.step for fact in steps] == list(range(1, 51))
    assert {fact.attempt for fact in steps if fact.step > rolled.from_step} == {2}
    assert len(facts(forged, run.run_id, RunFinished)) == 1


def test_attach_works_alone_without_any_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = own()
    growth = esper.attach(model)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(INPUTS), TARGETS).backward()
        optimizer.step()
        growth.tick(step + 1)
    assert list(growth.sites) == ["0", "3", "3+5"]
    assert detach(growth, step=3) is model
    assert list(tmp_path.iterdir()) == []


def test_a_first_pass_with_named_arguments_serves_as_probe_batch(forged: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_host()

        def forward(self, *, points: Tensor) -> Tensor:
            outputs: Tensor = self.inner(points * 1.0)
            points.zero_()  # what the pass does to its inputs must not reach the probe batch
            return outputs

    torch.manual_seed(5)
    model = Named()
    run = esper.run(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        total_steps=40,
        evaluate=lambda one: F.cross_entropy(one(points=INPUTS[64:].clone()), TARGETS[64:], reduction="none"),
        home=str(forged),
        **SETTINGS,
    )
    with run:
        while not run.done:
            ids = ids_of(run.steps_done)
            run.step(F.cross_entropy(model(points=INPUTS[ids].clone()), TARGETS[ids]))
    assert facts(forged, run.run_id, SeedFolded)
    assert torch.equal(run.growth.example_kwargs["points"], INPUTS[ids_of(0)])
