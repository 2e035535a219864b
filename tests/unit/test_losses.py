"""Losses on their way to the log: in order, read together, the same facts however often they are read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional as F

from esper.artifacts import open_store
from esper.errors import Diverged
from esper.events import Fact
from esper.events.base import RunFact
from esper.events.run import EpochCompleted, GovernorTripped, RunFailed, RunFinished, TrainingStepCompleted
from esper.kasmina import attach
from esper.oona.port import Receipt
from esper.tamiyo import make_policy
from esper.tolaria.evaluation import Evaluation
from esper.tolaria.losses import DRAIN_EVERY, LossBuffer
from esper.tolaria.session import Session
from esper.tolaria.supply import KernelSupply
from esper.tolaria.trainer import fail
from replay.history import differing_field
from tests.tiny_tasks import TINY, Tiny

CPU = torch.device("cpu")


def test_on_a_processor_each_loss_is_read_at_once() -> None:
    buffer = LossBuffer(CPU)
    assert not buffer.full
    buffer.add(torch.tensor(0.5))
    assert buffer.full


def test_elsewhere_losses_are_gathered() -> None:
    buffer = LossBuffer(torch.device("meta"))
    for _ in range(DRAIN_EVERY):
        assert not buffer.full
        buffer.add(torch.zeros((), device="meta"))
    assert buffer.full


def test_losses_come_back_in_order_and_once() -> None:
    buffer = LossBuffer(CPU, capacity=4)
    for number in (3.0, 1.0, 2.0):
        buffer.add(torch.tensor(number))
    assert (len(buffer), buffer.full) == (3, False)
    assert buffer.drain() == [3.0, 1.0, 2.0]
    assert (len(buffer), buffer.drain()) == (0, [])
    for number in range(4):
        buffer.add(torch.tensor(float(number)))
    assert buffer.full
    assert buffer.drain() == [0.0, 1.0, 2.0, 3.0]


def test_a_loss_is_kept_exactly_and_without_its_graph() -> None:
    buffer = LossBuffer(CPU, capacity=2)
    weight = torch.tensor(0.1, requires_grad=True)
    loss = weight * 3
    buffer.add(loss)
    loss.detach().zero_()
    buffer.add(torch.tensor(float("nan")))
    first, second = buffer.drain()
    assert first == float(torch.tensor(0.1) * 3)
    assert second != second


class Kept:
    """A sink that keeps facts in a list."""

    run_id = "run-1"

    def __init__(self) -> None:
        self.attempt = 1
        self.facts: list[Any] = []

    def emit(self, cls: type[Fact], **fields: Any) -> None:
        extra = {"ordinal": len(self.facts) + 1} if issubclass(cls, RunFact) else {}
        self.facts.append(cls(run_id=self.run_id, attempt=self.attempt, **extra, **fields))

    def barrier(self) -> Receipt | None:
        return None

    def next_attempt(self) -> None:
        self.attempt += 1

    def of(self, cls: type[Fact]) -> list[Any]:
        return [fact for fact in self.facts if isinstance(fact, cls)]


def begun(drain_every: int | None, total_steps: int = 130) -> tuple[Session, Kept]:
    torch.manual_seed(0)
    task, sink = Tiny(), Kept()
    data, host = task.data(0), task.host(0)
    config = msgspec.structs.replace(TINY, policy="off", total_steps=total_steps, steps_per_epoch=60)
    session = Session(
        attach(host, (data.train.inputs[:16],), emit=sink.emit),
        torch.optim.Adam(host.parameters(), lr=1e-2),
        config,
        sink=sink,
        store=open_store("memory://"),
        make_policy=lambda kernels: make_policy("off", {}, kernels=kernels),
        supply=KernelSupply(lambda kernel_id: pytest.fail(f"no kernel was asked for, not {kernel_id}")),
        run_seed=1,
        evaluate=lambda model: Evaluation(task.loss(model(data.validation.inputs), data.validation.targets)),
        drain_every=drain_every,
    )
    session.begin({})
    return session, sink


def take(session: Session, steps: int, spoil: int | None = None) -> None:
    data = Tiny().data(0)
    for _ in range(steps):
        ids = (torch.arange(16) + 16 * session.step_count) % 96
        loss = F.cross_entropy(session.growth.model(data.train.inputs[ids]), data.train.targets[ids])
        session.step(loss * float("nan") if session.step_count + 1 == spoil else loss)


def test_a_run_that_reads_losses_every_50_steps_tells_the_same_facts() -> None:
    told = []
    for drain_every in (1, 50):
        session, sink = begun(drain_every)
        take(session, 130)
        session.finish(None)
        told.append(sink)
    each, seldom = told
    assert len(each.facts) == len(seldom.facts)
    for cls in {type(fact) for fact in each.facts}:
        for first, second in zip(each.of(cls), seldom.of(cls), strict=True):
            assert differing_field(first, second) is None, cls
    assert [fact.step for fact in seldom.of(TrainingStepCompleted)] == list(range(1, 131))
    assert len(seldom.of(EpochCompleted)) == 3
    assert len(seldom.of(RunFinished)) == 1


def test_losses_wait_in_the_buffer_between_readings() -> None:
    session, sink = begun(50)
    take(session, 49)
    assert sink.of(TrainingStepCompleted) == []
    take(session, 1)
    assert len(sink.of(TrainingStepCompleted)) == 50


def test_a_failure_tells_the_steps_before_it_first() -> None:
    session, sink = begun(50)
    take(session, 7)
    assert fail(sink, session, RuntimeError("gave way")) == 7
    assert [type(fact) for fact in sink.facts[-8:]] == [TrainingStepCompleted] * 7 + [RunFailed]


def test_a_loss_that_is_not_finite_trips_at_the_next_reading() -> None:
    session, sink = begun(20)
    with pytest.raises(Diverged, match="step 20"):
        take(session, 30, spoil=5)
    assert sink.of(GovernorTripped)[0].step == 20
    assert len(sink.of(TrainingStepCompleted)) == 20
