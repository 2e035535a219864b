"""The run report: self-contained, safe, true to the log, and readable whatever the run came to."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from esper.cli.report import read_report, render, write_report
from esper.cli.report.charts import windows
from esper.cli.report.lanes import alpha_at
from esper.cli.report.scales import fitting, linear, logarithmic, tick_text
from esper.cli.report.svg import path
from esper.cli.report.wording import duration, percent, short_id, si, signed, utc
from esper.clock import ManualClock
from esper.errors import NotFound
from esper.events import Event, Fact
from esper.events.decision import (
    Action,
    DecisionExecuted,
    DecisionMade,
    DecisionRequested,
    Observation,
    RandomDraw,
    Schedule,
)
from esper.events.operator import NoteAdded
from esper.events.run import (
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import (
    AlphaMoved,
    CounterfactualMeasured,
    KernelOffer,
    KernelsOffered,
    SeedFaulted,
    SeedHealthMeasured,
    SeedTransitioned,
    SiteRegistered,
)
from esper.ids import derived_id
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY

RUN = "run-019326f4c1d27a3b9c01e4a2ff"
EPOCH = 10
BLUEPRINT = "ab" * 32
HOSTILE = "<script>alert('x')</script><img src=//evil.example/x onerror=y>\"'&"


class Teller:
    """Tells a log what happened in a run, fact by fact."""

    def __init__(self, log: MemoryLog, run_id: str = RUN, **started: Any) -> None:
        self.log, self.run_id, self.attempt, self.ordinal = log, run_id, 1, 0
        fields: dict[str, Any] = {
            "task": "digits",
            "entry_point": "digits",
            "host": "MLP 64-16-10",
            "policy": "heuristic",
            "config": {"learning_rate": 0.003},
            "config_version": 1,
            "seeds": {"run": 7},
            "total_steps": 40,
            "steps_per_epoch": EPOCH,
            "git_commit": "c0ffee" * 6,
            "git_dirty_digest": None,
            "packages": {"torch": "2.13.0"},
            "environment": {"threads": 1},
            "environment_digest": b"\x01" * 32,
            "dataset_digest": b"\x02" * 32,
        }
        self.tell(RunStarted, **{**fields, **started})

    def tell(self, kind: type[Fact], /, **fields: Any) -> None:
        self.ordinal += 1
        run = {"run_id": self.run_id, "attempt": self.attempt, "ordinal": self.ordinal}
        self.add(kind(**{**run, **fields}), "run", self.attempt, self.ordinal)

    def decide(self, kind: type[Fact], decision: int, /, **fields: Any) -> None:
        fact = kind(run_id=self.run_id, attempt=self.attempt, decision=decision, **fields)
        self.add(fact, "decision", self.attempt, decision, kind.__name__)

    def add(self, fact: Fact, *cause: str | int) -> None:
        event_id = derived_id(cause[0], self.run_id, *cause[1:])
        event = Event(fact=fact, event_id=event_id, sender_id="test", trace_id="0" * 32)
        self.log.append([event], stream=fact.stream, expected=ANY)

    def train(self, first: int, last: int, loss: float = 1.0) -> None:
        """Take steps, ending an epoch after every tenth."""
        for step in range(first, last + 1):
            self.tell(
                TrainingStepCompleted,
                epoch=(step - 1) // EPOCH,
                step=step,
                loss=loss / step,
                learning_rate=0.01,
                samples_digest=None,
                duration_s=0.01,
            )
            if step % EPOCH == 0:
                self.epoch(step, loss / step)

    def epoch(self, step: int, loss: float) -> None:
        self.tell(
            EpochCompleted,
            epoch=step // EPOCH - 1,
            step=step,
            train_loss=loss,
            validation_loss=loss,
            validation_accuracy=step / 50,
            parameters=1210 if step < 20 else 2330,
            training_flops=step * 1_000_000,
            parameter_digest=b"\x03" * 32,
            data_digest=b"\x04" * 32,
            duration_s=0.1,
        )

    def finish(self, accuracy: float | None = 0.95, step: int = 40) -> None:
        self.tell(
            RunFinished,
            step=step,
            test_loss=0.21,
            test_accuracy=accuracy,
            parameters=2330,
            folded_parameters=2330,
            training_flops=40_000_000,
            inference_flops=4660,
            parameter_digest=b"\x03" * 32,
            duration_s=12.5,
        )

    def site(self, name: str = "body.0", depth: int = 0) -> None:
        self.tell(SiteRegistered, site=name, kind="linear", depth=depth, signature={}, parameters=100, flops=200)

    def probe(self, step: int, zr: float | None, name: str = "body.0") -> None:
        nothing = dict.fromkeys(set(SeedHealthMeasured.__struct_fields__[8:-2]) - {"zr"})
        self.tell(
            SeedHealthMeasured,
            site=name,
            step=step,
            depth=0,
            parameters=100,
            flops=200,
            zr=zr,
            seeds_present=0,
            alpha=0.0,
            **nothing,
        )

    def move(self, seed_id: str, source: str, target: str, step: int, decision: int | None = None) -> None:
        self.tell(
            SeedTransitioned,
            seed_id=seed_id,
            site="body.0",
            source=source,
            target=target,
            step=step,
            trigger="commanded",
            reason="",
            evidence={},
            blueprint_id=BLUEPRINT,
            kernel_id="cd" * 32,
            decision=decision,
            parameters=1120,
        )

    def live(self, seed_id: str, first: int, *later: tuple[str, int]) -> None:
        """Walk a seed from its germination through later states."""
        before = "dormant"
        for target, step in (("germinated", first), ("loading", first), ("grafting", first), *later):
            self.move(seed_id, before, target, step)
            before = target

    def choose(self, number: int, step: int, probabilities: list[float], legal: list[Action], chosen: int) -> None:
        observation = Observation(
            step=step,
            total_steps=40,
            epoch=0,
            train_loss=1.0,
            validation_loss=None,
            recent_train_losses=[],
            recent_validation_losses=[],
            parameters=1210,
            initial_parameters=1210,
            germinated=0,
            sites=[],
            seeds=[],
        )
        shared: dict[str, Any] = {"feature_schema": "1", "observation_digest": b"\x05" * 32}
        self.decide(DecisionRequested, number, step=step, epoch=0, observation=observation, **shared)
        self.decide(
            DecisionMade,
            number,
            policy_id="heuristic",
            policy_digest=b"\x06" * 32,
            mode="live",
            legal=legal,
            masked=[],
            probabilities=probabilities,
            chosen=chosen,
            uniform=0.5,
            random=RandomDraw(algorithm="philox", key=[1], counter=0),
            **shared,
        )


WAIT = Action(kind="noop")
GERMINATE = Action(kind="germinate", site="body.0", blueprint_id=BLUEPRINT, schedule=Schedule())


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    kept = MemoryLog(ManualClock())
    yield kept
    kept.close()


def grown(log: MemoryLog) -> Teller:
    """A run with two seeds, one kept and one culled, decisions, probes and a measured gain."""
    run = Teller(log)
    run.site()
    offer = KernelOffer(kernel_id="cd" * 32, blueprint_id=BLUEPRINT, name="res_mlp", parameters=1120, flops=2240)
    run.tell(KernelsOffered, site="body.0", offers=[offer])
    run.choose(1, 10, [0.2, 0.8], [WAIT, GERMINATE], 1)
    run.decide(DecisionExecuted, 1, step=10, executed=True, reason=None)
    run.train(1, 40)
    run.live("seed-1", 10, ("stabilization", 20), ("evaluating", 25), ("fossilized", 30))
    run.live("seed-2", 12, ("culled", 20), ("embargoed", 25), ("dormant", 35))
    run.tell(AlphaMoved, seed_id="seed-1", site="body.0", step=20, alpha=1.0, target=1.0)
    run.probe(10, 0.5)
    run.probe(20, 0.25)
    run.tell(
        CounterfactualMeasured,
        seed_id="seed-1",
        site="body.0",
        step=28,
        samples=256,
        loss_with=0.5,
        loss_without=0.54,
        gain=0.04,
        gain_stderr=0.005,
        batch_norm_reestimated=False,
    )
    run.finish()
    return run


def arm(log: MemoryLog, role: str, accuracy: float) -> str:
    run_id = f"run-{role}"
    other = Teller(log, run_id, config={"arm": role, "compare_to": RUN}, policy="off")
    other.train(1, 40, loss=2.0)
    other.finish(accuracy)
    return run_id


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(log: MemoryLog, run_id: str = RUN) -> str:
    return render(read_report(log, run_id))


def check_is_sound(text: str) -> None:
    """The page loads nothing, runs nothing, and each drawing is well-formed with finite numbers only."""
    parsed = Page(text)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "action", "data", "xlink:href", "style"}
            assert not name.startswith("on")
            assert name != "href" or (value or "").startswith("#")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|@font-face", style[1])
    assert "default-src 'none'" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        numbers = re.findall(r'\b(?:d|x|y|x1|x2|y1|y2|cx|cy|width|height)="([^"]*)"', drawing)
        assert not any(re.search("nan|inf", number) for number in numbers)


def test_the_page_loads_nothing_from_anywhere(log: MemoryLog) -> None:
    grown(log)
    check_is_sound(page(log))


def test_there_is_one_lane_per_seed_with_its_states(log: MemoryLog) -> None:
    grown(log)
    report = read_report(log, RUN)
    assert [lane.seed_id for lane in report.lanes] == ["seed-1", "seed-2"]
    assert [lane.outcome for lane in report.lanes] == ["fossilized", "culled"]
    text = page(log)
    for seed in ("seed-1", "seed-2"):
        assert text.count(f"<title>seed {seed}, blueprint {BLUEPRINT}</title>") == 2  # wide and narrow
    assert 'class="span s-fossilized"' in text
    assert 'class="span s-embargoed"' in text


def test_a_lane_ends_when_its_site_is_free_again(log: MemoryLog) -> None:
    grown(log)
    spans = read_report(log, RUN).lanes[1].spans
    assert [(span.state, span.first, span.last) for span in spans] == [
        ("germinated", 12, 12),
        ("loading", 12, 12),
        ("grafting", 12, 20),
        ("culled", 20, 25),
        ("embargoed", 25, 35),
    ]


def test_hostile_text_is_shown_and_never_run(log: MemoryLog) -> None:
    run = Teller(
        log,
        task=HOSTILE,
        policy=HOSTILE,
        host=HOSTILE,
        config={HOSTILE: HOSTILE, "arm": HOSTILE},
        packages={HOSTILE: HOSTILE},
        environment={HOSTILE: [HOSTILE]},
        seeds={HOSTILE: 1},
        git_commit=HOSTILE,
    )
    run.site(HOSTILE)
    offer = KernelOffer(kernel_id=HOSTILE, blueprint_id=BLUEPRINT, name=HOSTILE, parameters=1, flops=1)
    run.tell(KernelsOffered, site=HOSTILE, offers=[offer])
    run.train(1, 20)
    run.probe(10, 0.5, HOSTILE)
    run.live(HOSTILE, 5, ("culled", 10))
    run.move(HOSTILE, "culled", HOSTILE, 15)
    run.choose(1, 5, [1.0], [Action(kind=HOSTILE, site=HOSTILE, seed_id=HOSTILE)], 0)
    run.decide(DecisionExecuted, 1, step=5, executed=False, reason=HOSTILE)
    run.tell(RunFailed, step=20, error=HOSTILE, message=HOSTILE, traceback_digest=None)
    arm(log, "no-growth", 0.9)
    text = page(log)
    check_is_sound(text)
    assert Page(text).text.count(HOSTILE) > 8


def test_the_arms_are_compared_with_the_run(log: MemoryLog) -> None:
    grown(log)
    off, scratch = arm(log, "no-growth", 0.92), arm(log, "from-scratch", 0.97)
    Teller(log, "run-stranger", config={"arm": "no-growth", "compare_to": "run-else"})
    fork = Teller(log, "run-fork", parent_run_id=RUN, parent_position=3)
    report = read_report(log, RUN)
    assert [(each.role, each.run_id) for each in report.arms] == [
        ("grown", RUN),
        ("no-growth", off),
        ("from-scratch", scratch),
        ("other", fork.run_id),
    ]
    text = Page(page(log)).text
    assert "3.0 points above the same host without growth" in text
    assert "and 2.0 points below the same final architecture trained from scratch" in text
    assert "−3.0 points" in text  # noqa: RUF001
    assert "+2.0 points" in text
    assert f"esper run compare {RUN} {off} {scratch} run-fork" in text


def test_an_arm_that_equals_the_run_is_called_level(log: MemoryLog) -> None:
    grown(log)
    arm(log, "no-growth", 0.95)
    assert "level with the same host without growth" in Page(page(log)).text


def test_two_arms_of_one_kind_have_different_names(log: MemoryLog) -> None:
    grown(log)
    for place in (1, 2):
        Teller(log, f"run-{place}", config={"arm": "no-growth", "compare_to": RUN})
    labels = [each.label for each in read_report(log, RUN).arms]
    assert labels == ["this run", "same host, no growth", "same host, no growth (2)"]


def test_a_run_without_seeds_or_arms_says_so(log: MemoryLog) -> None:
    run = Teller(log, policy="off")
    run.train(1, 40)
    run.finish()
    text = page(log)
    check_is_sound(text)
    assert "No seed germinated" in text
    assert "No comparison run is in this log" in text
    assert f"--policy off --steps 40 --seed 7 --set arm=no-growth --set compare_to={RUN}" in text


def test_a_run_that_has_only_begun_has_a_page(log: MemoryLog) -> None:
    Teller(log)
    text = page(log)
    check_is_sound(text)
    assert 'class="status st-running"' in text
    assert "0 of 40 steps are done" in text
    assert "replay verify" not in text


def test_an_unfinished_run_shows_how_far_it_is_and_no_test_result(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 23)
    report = read_report(log, RUN)
    assert (report.status, report.steps, report.grown.test_accuracy) == ("running", 23, None)
    text = page(log)
    check_is_sound(text)
    assert "23 of 40 steps are done; the test data was not touched." in text


def test_a_failed_run_names_its_error(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 5)
    run.tell(RunFailed, step=5, error="ValueError", message="bad batch", traceback_digest=None)
    text = page(log)
    check_is_sound(text)
    assert 'class="status st-failed"' in text
    assert f"esper train --resume {RUN}" in text
    assert "ValueError at step 5: bad batch" in text


def test_losses_that_are_not_finite_are_gaps_with_a_mark(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 10)
    run.train(11, 15, loss=math.nan)
    run.train(16, 18, loss=math.inf)
    run.train(19, 20, loss=math.nan)
    run.tell(GovernorTripped, step=20, kind="not_finite", evidence={"loss": math.nan}, suspect_seed_id=None)
    text = page(log)
    check_is_sound(text)
    assert "not finite at step 11" in text
    assert "not finite at step 17" in text
    assert "Interruptions" in text
    assert "not finite" in Page(text).text


def test_a_run_of_nothing_but_nan_has_a_page(log: MemoryLog) -> None:
    run = Teller(log)
    run.site()
    run.train(1, 20, loss=math.nan)
    run.probe(10, math.nan)
    run.finish(accuracy=math.nan)
    check_is_sound(page(log))


def test_steps_that_a_resumption_did_again_count_once(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 25)
    run.live("seed-lost", 24)
    resume(run, 20)
    run.train(21, 40)
    run.finish()
    report = read_report(log, RUN)
    assert [step for step, _ in report.grown.train_loss] == list(range(1, 41))
    assert (report.attempts, report.redone_steps, report.lanes) == (2, 5, [])
    assert "the process was killed; 5 steps done again" in page(log)


def resume(run: Teller, step: int) -> None:
    run.attempt, run.ordinal = run.attempt + 1, 0
    run.tell(
        RunResumed,
        from_step=step,
        checkpoint_digest=b"\x07" * 32 if step else b"",
        redone_steps=5,
        writer="w",
        reason="the process was killed",
        environment_digest=b"\x01" * 32,
    )


def test_a_decision_that_was_taken_back_gives_way_to_the_one_taken_again(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 25)
    run.choose(1, 10, [1.0], [WAIT], 0)
    run.choose(2, 20, [0.5, 0.5], [WAIT, GERMINATE], 1)
    run.choose(3, 25, [1.0], [GERMINATE], 0)
    resume(run, 20)
    run.choose(2, 20, [0.5, 0.5], [WAIT, GERMINATE], 0)
    decisions = read_report(log, RUN).decisions
    assert [(each.number, each.kind) for each in decisions] == [(1, "noop"), (2, "noop")]


def test_a_run_begun_again_without_a_checkpoint_keeps_nothing_of_before(log: MemoryLog) -> None:
    run = Teller(log)
    run.live("seed-born", 0)
    run.train(1, 5)
    resume(run, 0)
    run.train(1, 3)
    report = read_report(log, RUN)
    assert (report.steps, report.redone_steps, report.lanes) == (3, 5, [])


def test_a_rollback_takes_back_what_came_after_and_is_told(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 30)
    run.live("seed-1", 12)
    run.tell(
        SeedFaulted, seed_id="seed-1", site="body.0", step=29, kind="not_finite", message="NaN", traceback_digest=None
    )
    run.attempt, run.ordinal = 2, 0
    run.tell(RolledBack, from_step=30, to_step=20, checkpoint_digest=b"\x07" * 32, culled_seed_id="seed-1")
    run.move("seed-1", "grafting", "rolled_back", 20)
    report = read_report(log, RUN)
    assert report.steps == 20
    assert report.lanes[0].outcome == "rolled_back"
    assert [moment.kind for moment in report.moments] == ["seed faulted", "rolled back"]
    check_is_sound(page(log))


def test_the_same_log_gives_the_same_page(log: MemoryLog) -> None:
    grown(log)
    arm(log, "no-growth", 0.92)
    assert page(log) == page(log)


def test_a_decision_shows_the_likeliest_actions_and_always_the_chosen_one(log: MemoryLog) -> None:
    run = Teller(log)
    legal = [WAIT, *(Action(kind="germinate", site=f"body.{place}", blueprint_id=BLUEPRINT) for place in range(5))]
    run.choose(1, 10, [0.3, 0.05, 0.25, 0.2, 0.1, 0.1], legal, 1)
    decision = read_report(log, RUN).decisions[0]
    assert [(choice.probability, choice.chosen) for choice in decision.choices] == [
        (0.3, False),
        (0.25, False),
        (0.05, True),
    ]
    assert decision.label == f"germinate {BLUEPRINT[:12]}… at body.0"
    assert decision.outcome == "no outcome recorded"


def test_actions_that_differ_in_their_schedule_only_are_told_apart(log: MemoryLog) -> None:
    run = Teller(log)
    legal = [
        Action(kind="germinate", site="body.0", blueprint_id=BLUEPRINT, schedule=Schedule(ramp_steps=steps))
        for steps in (200, 500)
    ]
    run.choose(1, 10, [0.5, 0.5], legal, 0)
    labels = [choice.label for choice in read_report(log, RUN).decisions[0].choices]
    assert len(set(labels)) == 2
    assert "200 steps" in labels[0]


def test_a_commanded_seed_is_joined_to_its_decision(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 20)
    run.choose(1, 10, [1.0], [GERMINATE], 0)
    run.move("seed-1", "dormant", "germinated", 10, decision=1)
    assert read_report(log, RUN).decisions[0].seed_id == "seed-1"


def test_gains_come_with_their_interval(log: MemoryLog) -> None:
    grown(log)
    text = page(log)
    assert "+0.0400 ± 0.0098" in text
    assert "+0.03020 to +0.04980" in text


def test_notes_of_people_are_shown_with_author_and_time(log: MemoryLog) -> None:
    run = Teller(log)
    run.add(NoteAdded(run_id=RUN, actor="ada", text=HOSTILE), "note", 1)
    text = page(log)
    check_is_sound(text)
    assert f"ada, 2023-11-14 22:13:20 UTC: {HOSTILE}" in Page(text).text


def test_provenance_names_digests_in_full(log: MemoryLog) -> None:
    grown(log)
    text = page(log)
    for full in (RUN, "02" * 32, "01" * 32, "c0ffee" * 6, log.head().chain.hex()):
        assert f'title="{full}">{full}</code>' in text


def test_a_run_that_is_not_there_is_not_found(log: MemoryLog) -> None:
    with pytest.raises(NotFound, match="no run run-nowhere"):
        read_report(log, "run-nowhere")


def test_write_report_makes_folders_and_replaces_the_file(log: MemoryLog, tmp_path: Path) -> None:
    grown(log)
    target = tmp_path / "reports" / "deep" / "run.html"
    assert write_report(log, RUN, target) == target
    first = target.read_bytes()
    target.write_bytes(b"old")
    write_report(log, RUN, target)
    assert target.read_bytes() == first
    assert first.decode("utf-8").startswith("<!doctype html>")


def test_the_report_needs_no_torch_and_no_tables() -> None:
    code = "import sys, esper.cli.report; sys.exit(bool({'torch', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_windows_keep_the_mean_and_do_not_hide_nan() -> None:
    points = [(float(step), float(step)) for step in range(1, 11)]
    assert windows(points, 5) == ([(2.0, 1.5), (4.0, 3.5), (6.0, 5.5), (8.0, 7.5), (10.0, 9.5)], 2)
    assert windows(points, 10) == (points, 1)
    means, _ = windows([(1.0, 1.0), (2.0, math.nan), (3.0, 2.0), (4.0, 4.0)], 2)
    assert math.isnan(means[0][1])
    assert means[1] == (4.0, 3.0)


def test_alpha_stands_still_until_the_epoch_in_which_it_moved(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 40)
    run.live("seed-1", 10)
    for step, alpha in ((20, 1.0), (40, 0.0)):
        run.tell(AlphaMoved, seed_id="seed-1", site="body.0", step=step, alpha=alpha, target=alpha)
    alpha = read_report(log, RUN).lanes[0].alpha
    assert [alpha_at(alpha, step) for step in (5, 10, 15, 20, 30, 35, 40, 50)] == [0, 0, 0.5, 1, 1, 0.5, 0, 0]


def test_alpha_moves_only_between_the_moves_that_bound_it(log: MemoryLog) -> None:
    run = Teller(log)
    run.train(1, 40)
    run.live("seed-1", 12, ("stabilization", 18), ("culled", 34), ("embargoed", 36))
    for step, alpha in ((20, 1.0), (40, 0.0)):
        run.tell(AlphaMoved, seed_id="seed-1", site="body.0", step=step, alpha=alpha, target=alpha)
    alpha = read_report(log, RUN).lanes[0].alpha
    assert [alpha_at(alpha, step) for step in (12, 15, 18, 20, 34, 35, 36, 40)] == [0, 0.5, 1, 1, 1, 0.5, 0, 0]


def test_an_arm_points_to_the_run_it_was_made_for(log: MemoryLog) -> None:
    grown(log)
    own = arm(log, "no-growth", 0.9)
    text = page(log, own)
    assert f"esper run report {RUN}" in text
    assert "This run was made to be compared with" in text


def test_seeds_that_were_there_from_the_first_step_are_not_called_grown(log: MemoryLog) -> None:
    run = Teller(log)
    run.live("seed-1", 0)
    run.train(1, 10)
    assert "The host had 1 seed from the first step and grew no more." in page(log)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 2400, ["0", "500", "1,000", "1,500", "2,000", "2,500"]),
        (0, 990e9, ["0", "0.2 T", "0.4 T", "0.6 T", "0.8 T", "1.0 T"]),
        (-0.01, 0.03, ["−0.01", "0", "0.01", "0.02", "0.03"]),  # noqa: RUF001
    ],
)
def test_linear_ticks_are_round_numbers(low: float, high: float, ticks: list[str]) -> None:
    scale = linear(low, high, 0, 500, spacing=100)
    assert [tick_text(scale, tick) for tick in scale.ticks] == ticks


def test_a_scale_is_logarithmic_only_over_a_wide_positive_range() -> None:
    assert fitting([0.01, 1.0], 0, 100, spacing=20, zero=True, may_log=True).log
    assert not fitting([0.1, 1.0], 0, 100, spacing=20, zero=True, may_log=True).log
    assert not fitting([0.0, 1.0], 0, 100, spacing=20, zero=True, may_log=True).log
    assert not fitting([0.01, 1.0], 0, 100, spacing=20, zero=True, may_log=False).log
    scale = logarithmic(0.01, 1.0, 0, 100, spacing=20)
    assert [scale(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 50, 100])


def test_ticks_of_a_logarithmic_scale_are_written_alike() -> None:
    wide = logarithmic(1e-7, 1e-3, 0, 100, spacing=40)
    assert [tick_text(wide, tick) for tick in wide.ticks] == ["1e−7", "1e−5", "1e−3"]  # noqa: RUF001
    near = logarithmic(0.02, 0.6, 0, 100, spacing=20)
    assert [tick_text(near, tick) for tick in near.ticks] == ["0.02", "0.05", "0.1", "0.2", "0.5"]


def test_a_curve_breaks_at_a_value_that_is_not_finite_and_goes_on_after_it() -> None:
    x, y = linear(0, 4, 0, 40, spacing=10), linear(0, 4, 40, 0, spacing=10)
    points = [(0.0, 0.0), (1.0, 1.0), (2.0, math.nan), (3.0, math.inf), (4.0, 4.0)]
    assert path(points, x, y) == "M0 40L10 30M40 0"
    assert path(points[:2], x, y, stepped=True) == "M0 40V30H10"


def test_a_flat_line_stands_inside_its_axis() -> None:
    scale = linear(5, 5, 100, 0, spacing=20)
    assert 0 < scale(5) < 100


def test_numbers_are_written_for_people() -> None:
    assert [si(value, "FLOP") for value in (0, 999, 6932, 999_700, 1.234e12)] == [
        "0 FLOP",
        "999 FLOP",
        "6.93 kFLOP",
        "1.00 MFLOP",
        "1.23 TFLOP",
    ]
    assert (percent(0.9583, 2), percent(None), percent(math.nan)) == ("95.83 %", "–", "not finite")  # noqa: RUF001
    assert (signed(-0.5, 1), signed(0.0001, 1), signed(2, 0)) == ("−0.5", "±0.0", "+2")  # noqa: RUF001
    assert [duration(value) for value in (0.25, 62.6, 7265)] == ["0.2 s", "1 min 03 s", "2 h 01 min"]
    assert utc(1_763_900_000_000_000) == "2025-11-23 12:13:20 UTC"
    assert (short_id("ab" * 32), short_id(RUN), short_id("seed-1")) == ("ab" * 6 + "…", "run-…01e4a2ff", "seed-1")
