"""What consumers do, on any log. A new adapter passes by subclassing ``ConsumerContract`` with its own ``open_log``.

Members run in one thread on a monotonic clock that moves when told; threads and processes are tested in
``tests/integration/test_consumer_processes.py``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.artifacts.memory import MemoryStore
from esper.clock import ManualClock
from esper.errors import ArtifactError, ConfigError, HandlerError, LogRegressed, NotFound, SchemaError
from esper.events import Event, Fact, fact_of
from esper.events.handler import BacklogHandled, EventParked, EventRetried, EventSkipped
from esper.events.message import MessagePublished
from esper.events.operator import NoteAdded
from esper.events.run import TrainingStepCompleted
from esper.ids import derived_id
from esper.metrics import HANDLER_EVENTS, HANDLER_LAG_EVENTS, HANDLER_PARKED
from esper.names import TopicNames
from esper.oona import ANY, EventLog
from esper.oona.consuming.consumer import END, Consumer, Delivery
from esper.oona.consuming.parking import ParkedState, parked_events, retry, skip
from esper.oona.consuming.slots import slot_of

TOPIC = TopicNames.OPERATOR_ACTIONS
GROUP = "urza"
TTL_S = 100.0


class Steady:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def note(run: str, number: int) -> Event:
    return event(NoteAdded(run_id=run, actor="ada", text=str(number)), derived_id("note", run, number))


def step(number: int) -> Event:
    fact = TrainingStepCompleted(
        run_id="r",
        attempt=1,
        ordinal=number,
        epoch=0,
        step=number,
        loss=0.5,
        learning_rate=0.1,
        samples_digest=b"s" * 16,
        duration_s=0.1,
    )
    return event(fact, derived_id("step", number))


def event(fact: Fact, event_id: bytes) -> Event:
    return Event(fact=fact, event_id=event_id, sender_id="test", trace_id="0" * 32)


def names(deliveries: Sequence[Delivery]) -> list[str]:
    """Return ``run:number`` of each delivered note."""
    return [name_of(one.fact) for one in deliveries]


def name_of(fact: Fact) -> str:
    assert isinstance(fact, NoteAdded)
    return f"{fact.run_id}:{fact.text}"


def handle() -> None:
    raise SchemaError("redis://ada:geheim@host/0 is no number")


class ConsumerContract(ABC):
    """The behaviour of ``Consumer``, one sentence a test."""

    @abstractmethod
    def open_log(self) -> EventLog:
        """Return a new, empty log."""

    #: A folder of each test's own, and how many logs it opened, for adapters that need names.
    folder: Path
    opened = 0

    @pytest.fixture(autouse=True)
    def _open(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        with ExitStack() as self.stack:
            self.log = self.next_log()
            self.clock = Steady()
            self.store = MemoryStore()
            yield

    # --- helpers

    def next_log(self) -> EventLog:
        self.opened += 1
        return self.stack.enter_context(self.open_log())

    def member(self, name: str = "ada", **options: Any) -> Consumer:
        settings = {"group": GROUP, "topics": [TOPIC], "ttl_s": TTL_S, "slots": 4, "attempts": 3, **options}
        consumer = Consumer(
            self.log,
            member=name,
            store=settings.pop("store", self.store),
            sender_id=f"handler:{GROUP}",
            trace_id="1" * 32,
            monotonic=settings.pop("monotonic", self.clock),
            chance=settings.pop("chance", lambda: 1.0),
            **settings,
        )
        self.stack.callback(consumer.close)
        return consumer

    def append(self, *found: str) -> list[int]:
        """Append notes named ``run:number`` and return their positions."""
        places = []
        for name in found:
            run, _, number = name.partition(":")
            places.append(self.log.append([note(run, int(number))], stream=f"operator/{run}", expected=ANY).last)
        return places

    def drain(self, *consumers: Consumer) -> list[str]:
        """Let members handle everything that comes, in turn, and return what was handled."""
        handled: list[str] = []
        while True:
            before = len(handled)
            for consumer in consumers:
                found = consumer.poll(10, 0.0)
                handled += names(found)
                assert consumer.done(found) == []
            if len(handled) == before and all(one.lag().events == 0 for one in consumers):
                return handled

    def park(self, consumer: Consumer, name: str) -> int:
        """Let one event fail until it is parked; handle every other one. Returns its position."""
        while True:
            for one in consumer.poll(10, 0.0):
                if not consumer.holds(one):
                    continue
                if names([one]) == [name]:
                    consumer.failed(one, ValueError("no"))
                    if parked := [item for item in parked_events(self.log, GROUP) if item.state == "parked"]:
                        return parked[-1].position
                else:
                    consumer.done([one])
            self.clock.now_s += 5.0

    def facts(self) -> list[Fact]:
        return [fact_of(one) for one in self.log.read_stream(f"handler/{GROUP}")]

    def decide(self, what: Any, position: int) -> None:
        what(self.log, GROUP, position, actor="ada", reason="because", trace_id="2" * 32)
        self.clock.now_s += 1.0

    def count(self, outcome: str) -> float:
        return HANDLER_EVENTS.labels(GROUP, outcome)._value.get()

    # --- handing out

    def test_a_new_group_begins_at_the_beginning(self) -> None:
        self.append("a:1", "b:1", "a:2")
        assert sorted(self.drain(self.member())) == ["a:1", "a:2", "b:1"]

    def test_a_new_group_may_begin_at_the_end(self) -> None:
        self.append("a:1")
        consumer = self.member(start=END)
        self.append("a:2")
        assert self.drain(consumer) == ["a:2"]

    def test_a_group_that_exists_goes_on_whatever_start_says(self) -> None:
        self.append("a:1", "a:2")
        with self.member() as consumer:
            consumer.done(consumer.poll(1, 0.0))
        assert self.drain(self.member(start=END)) == ["a:2"]

    def test_events_come_decoded_and_as_they_are_in_the_log(self) -> None:
        self.append("a:1")
        (delivery,) = self.member().poll(10, 0.0)
        assert delivery.envelope == self.log.read()[0]
        assert delivery.fact == fact_of(delivery.envelope)
        assert delivery.attempt == 1

    def test_only_events_of_the_topics_come_and_the_lag_goes_to_zero_all_the_same(self) -> None:
        self.append("a:1")
        self.log.append([step(number) for number in range(1, 1200)], stream="run/r", expected=ANY)
        self.append("a:2")
        self.log.append([step(5000)], stream="run/r", expected=ANY)
        consumer = self.member()
        assert self.drain(consumer) == ["a:1", "a:2"]
        assert consumer.lag().events == 0

    def test_a_stream_gives_nothing_more_until_what_is_out_came_back(self) -> None:
        self.append("a:1", "a:2", "a:3")
        consumer = self.member()
        out = consumer.poll(2, 0.0)
        assert names(out) == ["a:1", "a:2"]
        self.append("a:4", "b:1")
        assert self.drain_ready(consumer) == ["b:1"]
        consumer.done(out[1:])
        self.append("a:5")
        assert consumer.poll(10, 0.0) == []
        consumer.done(out[:1])
        assert names(consumer.poll(10, 0.0)) == ["a:3", "a:4", "a:5"]

    def test_several_events_of_one_stream_come_in_order(self) -> None:
        self.append(*(f"a:{number}" for number in range(30)))
        assert names(self.member().poll(20, 0.0)) == [f"a:{number}" for number in range(20)]

    def test_a_poll_with_nothing_to_do_returns_after_its_time(self) -> None:
        consumer = self.member(monotonic=time.monotonic, ttl_s=5.0)
        began_s = time.monotonic()
        assert consumer.poll(10, 0.2) == []
        assert 0.2 <= time.monotonic() - began_s < 3.0

    def test_what_is_released_untried_comes_again_as_the_same_try(self) -> None:
        self.append("a:1", "a:2", "a:3")
        consumer = self.member()
        first = consumer.poll(10, 0.0)
        consumer.done(first[:1])
        consumer.release(first[1:])
        again = consumer.poll(10, 0.0)
        assert names(again) == ["a:2", "a:3"]
        assert [one.attempt for one in again] == [1, 1]
        assert consumer.done(first[1:]) == first[1:], "they were taken back"

    # --- failing

    def test_a_failed_event_is_tried_again_later_and_its_stream_waits(self) -> None:
        self.append("a:1", "a:2", "b:1")
        before = self.count("retried")
        consumer = self.member(first_delay_s=8.0)
        found = {names([one])[0]: one for one in consumer.poll(10, 0.0)}
        assert consumer.failed(found["a:1"], ValueError("no")) is True
        assert not consumer.holds(found["a:2"])
        assert consumer.done([found["a:2"], found["b:1"]]) == [found["a:2"]]
        assert self.drain_ready(consumer) == []
        self.clock.now_s += 7.9
        assert consumer.poll(10, 0.0) == []
        self.clock.now_s += 0.2
        again = consumer.poll(10, 0.0)
        assert names(again) == ["a:1", "a:2"]
        assert [one.attempt for one in again] == [2, 1]
        assert self.count("retried") == before + 1

    def drain_ready(self, consumer: Consumer) -> list[str]:
        found = consumer.poll(10, 0.0)
        consumer.done(found)
        return names(found)

    def test_other_streams_go_on_while_one_waits_for_its_next_try(self) -> None:
        self.append("a:1")
        consumer = self.member(first_delay_s=1000.0, most_delay_s=1000.0)
        consumer.failed(consumer.poll(10, 0.0)[0], ValueError("no"))
        self.append("b:1", "c:1", "b:2", "a:2")
        assert sorted(self.drain_ready(consumer) + self.drain_ready(consumer)) == ["b:1", "b:2", "c:1"]
        assert consumer.lag().events == 5

    def test_waits_double_up_to_a_bound_and_are_spread(self) -> None:
        self.append("a:1")
        chances = iter([1.0, 1.0, 0.0, 1.0])
        consumer = self.member(attempts=9, first_delay_s=1.0, most_delay_s=3.0, chance=lambda: next(chances))
        for wait_s in (1.0, 2.0, 1.5, 3.0):
            (one,) = consumer.poll(10, 0.0)
            consumer.failed(one, ValueError("no"))
            self.clock.now_s += wait_s - 0.01
            assert consumer.poll(10, 0.0) == []
            self.clock.now_s += 0.02
        assert consumer.poll(10, 0.0)[0].attempt == 5

    def test_failed_tries_count_across_members(self) -> None:
        self.append("a:1")
        with self.member("ada") as ada:
            ada.failed(ada.poll(10, 0.0)[0], ValueError("no"))
        assert self.member("bob").poll(10, 0.0)[0].attempt == 2

    def test_after_the_last_try_an_event_is_parked_with_its_cause(self) -> None:
        (position,) = self.append("a:1")
        before = self.count("parked")
        consumer = self.member()
        for _ in range(3):
            (one,) = consumer.poll(10, 0.0)
            try:
                handle()
            except SchemaError as error:
                consumer.failed(one, error)
            self.clock.now_s += 10.0
        (fact,) = self.facts()
        assert isinstance(fact, EventParked)
        envelope = self.log.read(position - 1, 1)[0]
        assert (fact.handler, fact.position, fact.event_id) == (GROUP, position, envelope.event_id)
        assert (fact.event_type, fact.event_stream, fact.event_version) == ("NoteAdded", "operator/a", 1)
        assert (fact.parking, fact.attempts, fact.member) == (1, 3, "ada")
        assert (fact.cause, fact.message) == ("E-SCH-001 SchemaError", "redis://ada:***@host/0 is no number")
        assert fact.traceback_digest is not None
        text = self.store.get(fact.traceback_digest).decode()
        assert "in handle" in text
        assert "geheim" not in text
        (stored,) = self.log.read_stream(f"handler/{GROUP}")
        assert (stored.causation_id, stored.sender_id) == (envelope.event_id, f"handler:{GROUP}")
        assert consumer.parked == 1
        assert self.count("parked") == before + 1
        assert self.drain(consumer) == []

    def test_an_event_is_parked_although_its_traceback_cannot_be_kept(self) -> None:
        class FullStore(MemoryStore):
            def put(self, data: bytes) -> bytes:
                raise ArtifactError("the disk is full")

        self.append("a:1")
        consumer = self.member(attempts=1, store=FullStore())
        consumer.failed(consumer.poll(10, 0.0)[0], ValueError("no"))
        (fact,) = self.facts()
        assert isinstance(fact, EventParked)
        assert fact.traceback_digest is None
        assert "the disk is full" in fact.message

    def test_behind_a_parked_event_its_stream_waits_and_the_others_go_on(self) -> None:
        self.append("a:1", "a:2", "b:1")
        consumer = self.member()
        self.park(consumer, "a:1")
        self.append("a:3", "b:2")
        assert self.drain(consumer) == ["b:2"]
        assert consumer.lag().events == 0
        consumer.close()
        assert self.drain(self.member("bob")) == [], "the next owner knows it too"

    @pytest.mark.parametrize("harm", ["type", "payload", "schema"])
    def test_an_event_that_cannot_be_decoded_is_parked_and_others_go_on(
        self, harm: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        positions = self.append("a:1", "a:2", "a:3", "b:1")
        spoil(monkeypatch, self.log, positions[1], harm)
        consumer = self.member()
        assert sorted(self.drain(consumer)) == ["a:1", "b:1"]
        (fact,) = self.facts()
        assert isinstance(fact, EventParked)
        assert (fact.position, fact.attempts) == (positions[1], 0)
        assert (
            fact.cause
            == {
                "type": "E-SCH-002 UnknownEventType",
                "payload": "E-SCH-001 SchemaError",
                "schema": "E-SCH-003 UpcastMissing",
            }[harm]
        )

    # --- what people decide

    def test_a_retried_event_comes_first_and_then_its_backlog_in_order(self) -> None:
        self.append("a:1", "a:2", "b:1", "a:3")
        consumer = self.member()
        position = self.park(consumer, "a:1")
        self.append("a:4")
        assert self.drain(consumer) == []
        self.decide(retry, position)
        self.append("a:5", "b:2")
        handled = self.drain(consumer)
        assert [one for one in handled if one[0] == "a"] == ["a:1", "a:2", "a:3", "a:4", "a:5"]
        _, retried, ended = self.facts()
        assert isinstance(retried, EventRetried)
        assert (retried.actor, retried.reason, retried.parking) == ("ada", "because", 1)
        assert isinstance(ended, BacklogHandled)
        assert (ended.position, ended.parking) == (position, 1)
        assert ended.through >= position + 4
        assert consumer.parked == 0
        assert parked_events(self.log) == []
        self.append("a:6")
        assert self.drain(consumer) == ["a:6"]

    def test_a_retried_event_is_a_first_try_again(self) -> None:
        self.append("a:1")
        consumer = self.member()
        self.decide(retry, self.park(consumer, "a:1"))
        assert consumer.poll(10, 0.0)[0].attempt == 1

    def test_a_skipped_event_never_comes_and_its_backlog_does(self) -> None:
        self.append("a:1", "a:2")
        before = self.count("skipped")
        consumer = self.member()
        position = self.park(consumer, "a:1")
        self.decide(skip, position)
        assert self.drain(consumer) == ["a:2"]
        _, skipped, ended = self.facts()
        assert isinstance(skipped, EventSkipped)
        assert isinstance(ended, BacklogHandled)
        assert self.count("skipped") == before + 1
        consumer.close()
        assert self.drain(self.member("bob")) == []

    def test_a_skipped_event_is_never_handled_although_the_cursor_stands_before_it(self) -> None:
        self.append("b:1", "a:1")
        consumer = self.member(slots=1)
        held = [one for one in consumer.poll(10, 0.0) if names([one]) == ["b:1"]]
        position = self.park_of(consumer, "a:1")
        self.decide(skip, position)
        assert consumer.poll(10, 0.0) == []
        consumer.release(held)
        consumer.close()
        assert self.drain(self.member("bob")) == ["b:1"]

    def park_of(self, consumer: Consumer, name: str) -> int:
        """Let an event that is out fail until it is parked, whatever else is out."""
        for _ in range(3):
            work = [one for one in self.out(consumer) if names([one]) == [name]] or [
                one for one in consumer.poll(10, 0.0) if names([one]) == [name]
            ]
            consumer.failed(work[0], ValueError("no"))
            self.clock.now_s += 10.0
        return parked_events(self.log, GROUP)[0].position

    def out(self, consumer: Consumer) -> list[Delivery]:
        works = consumer._holdings.work.values()
        return [one for work in works for lane in work.lanes.values() for one in lane.out.values()]

    def test_a_released_event_that_fails_again_is_parked_again(self) -> None:
        self.append("a:1", "a:2")
        consumer = self.member()
        position = self.park(consumer, "a:1")
        self.decide(retry, position)
        assert self.park(consumer, "a:1") == position
        assert [fact.parking for fact in self.facts() if isinstance(fact, EventParked)] == [1, 2]
        self.decide(retry, position)
        assert self.drain(consumer) == ["a:1", "a:2"]

    def test_a_later_event_of_the_backlog_that_fails_is_parked_and_the_first_is_dealt_with(self) -> None:
        self.append("a:1", "a:2", "a:3")
        consumer = self.member()
        first = self.park(consumer, "a:1")
        self.decide(retry, first)
        second = self.park(consumer, "a:2")
        assert second == first + 1
        kinds = [type(fact) for fact in self.facts()]
        assert kinds == [EventParked, EventRetried, BacklogHandled, EventParked]
        ended = self.facts()[2]
        assert isinstance(ended, BacklogHandled)
        assert (ended.position, ended.through) == (first, first)
        assert [one.position for one in parked_events(self.log, GROUP)] == [second]
        self.decide(skip, second)
        assert self.drain(consumer) == ["a:3"]

    def test_a_backlog_larger_than_a_page_comes_whole_and_in_order(self) -> None:
        (first,) = self.append("a:0")
        consumer = self.member(attempts=1)
        consumer.failed(consumer.poll(10, 0.0)[0], ValueError("no"))
        batch = [note("a", number) for number in range(1, 1203)]
        self.log.append(batch, stream="operator/a", expected=ANY)
        assert self.drain(consumer) == []
        self.decide(retry, first)
        assert self.drain(consumer) == [f"a:{number}" for number in range(1203)]

    def test_a_backlog_that_a_member_left_in_the_middle_is_done_again(self) -> None:
        self.append("a:1", "a:2", "a:3", "b:1")
        ada = self.member("ada")
        self.decide(retry, self.park(ada, "a:1"))
        found = ada.poll(2, 0.0)
        assert names(found) == ["a:1", "a:2"]
        ada.done(found[:1])
        self.clock.now_s += TTL_S
        bob = self.member("bob")
        self.take_over(bob)
        assert self.drain(bob) == ["a:1", "a:2", "a:3"]
        assert isinstance(self.facts()[-1], BacklogHandled)

    def test_a_backlogs_end_that_comes_late_from_a_former_owner_loses_nothing(self) -> None:
        """It saw less of the log than the new owner, to whom later events waited behind the released one."""
        (position,) = self.append("a:1")
        ada = self.member("ada", attempts=1)
        ada.failed(ada.poll(10, 0.0)[0], ValueError("no"))
        self.clock.now_s += TTL_S
        bob = self.member("bob")
        self.take_over(bob)
        self.append("a:2", "a:3")
        retry(self.log, GROUP, position, actor="ada", reason="because", trace_id="2" * 32)
        self.clock.now_s += 1.0
        found = bob.poll(1, 0.0)
        assert names(found) == ["a:1"]
        late = BacklogHandled(handler=GROUP, position=position, parking=1, through=position)
        self.log.append([event(late, b"late" * 4)], stream=f"handler/{GROUP}", expected=ANY)
        self.clock.now_s += 1.0
        assert bob.done(found) == []
        assert self.drain(bob) == ["a:2", "a:3"]

    def test_a_backlogs_late_end_costs_the_next_owner_nothing_either(self) -> None:
        (position,) = self.append("a:1")
        ada = self.member("ada", attempts=1)
        ada.failed(ada.poll(10, 0.0)[0], ValueError("no"))
        retry(self.log, GROUP, position, actor="ada", reason="because", trace_id="2" * 32)
        self.clock.now_s += TTL_S
        bob = self.member("bob")
        self.take_over(bob)
        self.append("a:2", "a:3", "b:1")
        found = [one for _ in range(5) for one in bob.poll(1, 0.0)]
        assert sorted(names(found)) == ["a:1", "b:1"]
        bob.done([one for one in found if names([one]) == ["b:1"]])
        self.clock.now_s += TTL_S / 2
        assert bob.poll(10, 0.0) == []
        late = BacklogHandled(handler=GROUP, position=position, parking=1, through=position)
        self.log.append([event(late, b"late" * 4)], stream=f"handler/{GROUP}", expected=ANY)
        self.clock.now_s += TTL_S
        eve = self.member("eve")
        self.take_over(eve)
        assert {"a:2", "a:3"} <= set(self.drain(eve))

    def test_a_new_owner_handles_what_stands_before_a_released_event_first(self) -> None:
        self.append("a:1", "a:2", "a:3")
        ada = self.member("ada", attempts=1)
        ada.failed(ada.poll(2, 0.0)[1], ValueError("no"))
        (parked,) = parked_events(self.log, GROUP)
        self.decide(retry, parked.position)
        self.clock.now_s += TTL_S
        bob = self.member("bob")
        self.take_over(bob)
        assert self.drain(bob) == ["a:1", "a:2", "a:3"]
        (ended,) = [fact for fact in self.facts() if isinstance(fact, BacklogHandled)]
        assert ended.through >= parked.position

    def test_a_backlogs_end_that_comes_late_before_the_new_owner_began_it_loses_nothing(self) -> None:
        (position,) = self.append("a:1")
        ada = self.member("ada", attempts=1)
        ada.failed(ada.poll(10, 0.0)[0], ValueError("no"))
        retry(self.log, GROUP, position, actor="ada", reason="because", trace_id="2" * 32)
        self.append("a:2", "a:3")
        bob = self.member("bob")
        bob.poll(0, 0.0)
        self.clock.now_s += TTL_S
        bob.poll(0, 0.0)
        assert len(bob.slots) == 4, "and has read that a:2 and a:3 wait"
        late = BacklogHandled(handler=GROUP, position=position, parking=1, through=position)
        self.log.append([event(late, b"late" * 4)], stream=f"handler/{GROUP}", expected=ANY)
        self.clock.now_s += 1.0
        assert self.drain(bob) == ["a:2", "a:3"]

    def test_deciding_about_what_is_not_parked_is_refused(self) -> None:
        self.append("a:1")
        consumer = self.member()
        for act in (retry, skip):
            with pytest.raises(NotFound):
                self.decide(act, 1)
        position = self.park(consumer, "a:1")
        with pytest.raises(NotFound):
            retry(self.log, "tezzeret", position, actor="a", reason="r", trace_id="2" * 32)
        self.decide(retry, position)
        for act in (retry, skip):
            with pytest.raises(NotFound, match="retrying already"):
                self.decide(act, position)
        assert self.drain(consumer) == ["a:1"]
        with pytest.raises(NotFound):
            self.decide(skip, position)
        assert len(self.facts()) == 3

    def test_parked_events_are_listed_by_handler_with_their_state(self) -> None:
        self.append("a:1", "b:1")
        consumer = self.member(attempts=1)
        for one in consumer.poll(10, 0.0):
            consumer.failed(one, ValueError("no"))
        self.decide(skip, 2)
        listed = parked_events(self.log)
        assert [(one.handler, one.position, one.state) for one in listed] == [
            (GROUP, 1, ParkedState.PARKED),
            (GROUP, 2, ParkedState.SKIPPED),
        ]
        assert parked_events(self.log, "tezzeret") == []

    # --- members

    def take_over(self, consumer: Consumer) -> None:
        """Let a member find out that the others are silent, and take their slots."""
        consumer.poll(0, 0.0)
        for _ in range(3):
            self.clock.now_s += TTL_S / 2
            consumer.poll(0, 0.0)
        assert len(consumer.slots) == consumer.plan.slots

    def settle(self, *consumers: Consumer) -> None:
        """Let members that all live find their shares."""
        for _ in range(6):
            for consumer in consumers:
                consumer.poll(0, 0.0)
            self.clock.now_s += 2.0

    def test_a_member_that_gives_up_all_it_has_rests_until_then(self) -> None:
        """It must not turn and turn while its deliveries are handled elsewhere and the log grows."""
        self.append("a:1")
        consumer = self.member(slots=1)
        consumer.poll(1, 0.0)
        for work in consumer._holdings.work.values():
            work.draining = True
        self.append("b:1")
        began_s, turns = time.monotonic(), 0
        while time.monotonic() - began_s < 0.3:
            consumer._rest(0.1)
            turns += 1
        assert turns <= 4

    def test_members_share_the_slots_fairly(self) -> None:
        members = [self.member(name, slots=8) for name in ("ada", "bob", "eve")]
        self.settle(*members)
        held = [member.slots for member in members]
        assert sorted(number for slots in held for number in slots) == list(range(8))
        assert sorted(map(len, held)) == [2, 3, 3]
        members[0].close()
        self.settle(*members[1:])
        assert sorted(len(member.slots) for member in members[1:]) == [4, 4]

    def test_one_member_takes_all_slots_at_its_first_poll(self) -> None:
        consumer = self.member(slots=8)
        consumer.poll(0, 0.0)
        assert consumer.slots == list(range(8))

    def test_more_members_than_slots_leave_some_waiting(self) -> None:
        members = [self.member(name, slots=2) for name in ("ada", "bob", "eve")]
        self.settle(*members)
        assert sorted(len(member.slots) for member in members) == [0, 1, 1]
        assert all(member.poll(10, 0.0) == [] for member in members)

    def test_each_stream_has_one_owner_among_members(self) -> None:
        runs = [f"run{number}" for number in range(20)]
        self.append(*(f"{run}:{number}" for number in range(3) for run in runs))
        members = [self.member(name) for name in ("ada", "bob")]
        self.settle(*members)
        owners = {run: [member for member in members if member.owns(f"operator/{run}")] for run in runs}
        assert {len(found) for found in owners.values()} == {1}
        handled = self.drain(*members)
        assert len(handled) == 60
        for run in runs:
            assert [one for one in handled if one.startswith(f"{run}:")] == [f"{run}:{number}" for number in range(3)]

    def test_a_departing_owner_finishes_what_is_out_before_another_gets_the_stream(self) -> None:
        runs = [f"run{number}" for number in range(12)]
        self.append(*(f"{run}:0" for run in runs))
        ada = self.member("ada")
        out = ada.poll(100, 0.0)
        self.append(*(f"{run}:1" for run in runs))
        bob = self.member("bob")
        self.settle(ada, bob)
        assert bob.slots == []
        assert bob.poll(100, 0.0) == []
        assert ada.done(out) == []
        self.settle(ada, bob)
        assert len(bob.slots) == 2
        assert sorted(self.drain(ada, bob)) == sorted(f"{run}:1" for run in runs)

    def test_the_slots_of_a_silent_member_are_taken_over_and_its_work_is_done_again(self) -> None:
        self.append("a:1", "b:1")
        ada = self.member("ada")
        out = ada.poll(10, 0.0)
        assert sorted(names(out)) == ["a:1", "b:1"]
        bob = self.member("bob")
        self.clock.now_s += TTL_S / 2
        assert bob.poll(10, 0.0) == []
        self.take_over(bob)
        assert sorted(self.drain(bob)) == ["a:1", "b:1"]

    def test_a_slot_that_is_taken_over_brings_only_its_own_events(self) -> None:
        runs = [f"run{number}" for number in range(12)]
        members = [self.member("ada"), self.member("bob")]
        self.settle(*members)
        self.append(*(f"{run}:1" for run in runs))
        ada, bob = members
        mine = self.drain_ready(ada) + self.drain_ready(ada)
        theirs = names(bob.poll(100, 0.0) + bob.poll(100, 0.0))
        assert mine
        assert theirs
        self.take_over(ada)
        assert sorted(self.drain(ada)) == sorted(theirs)

    def test_a_member_that_was_paused_past_its_lease_neither_hands_out_nor_commits(self) -> None:
        self.append("a:1", "b:1")
        ada = self.member("ada")
        out = ada.poll(1, 0.0)
        bob = self.member("bob")
        self.take_over(bob)
        handled = self.drain(bob)
        before = self.cursors()
        assert not ada.holds(out[0])
        assert not ada.owns(out[0].envelope.stream)
        assert ada.done(out) == out
        assert ada.failed(out[0], ValueError("no")) is False
        assert ada.poll(10, 0.0) == []
        ada.close()
        assert self.cursors() == before
        assert sorted(handled) == ["a:1", "b:1"]

    def test_a_late_commit_is_refused_by_the_token(self) -> None:
        """Even where the member's own clock stood still, so that it does not know."""
        self.append("a:1")
        still = Steady()
        ada = self.member("ada", monotonic=still, slots=1)
        out = ada.poll(1, 0.0)
        bob = self.member("bob")
        self.take_over(bob)
        assert ada.done(out) == [], "by its own clock the lease holds"
        assert self.drain(bob) == ["a:1"]
        self.append("a:2")
        assert self.drain(bob) == ["a:2"]
        before = self.cursors()
        still.now_s += 1.0
        ada.done([])
        assert not ada.owns("operator/a")
        ada.close()
        assert self.cursors() == before

    def test_a_member_that_lost_its_slot_parks_nothing_whatever_its_clock_says(self) -> None:
        self.append("a:1")
        ada = self.member("ada", monotonic=Steady(), attempts=1)
        out = ada.poll(1, 0.0)
        bob = self.member("bob")
        self.take_over(bob)
        ada.failed(out[0], ValueError("no"))
        assert self.facts() == []
        assert not ada.owns("operator/a")
        assert self.drain(bob) == ["a:1"]

    def cursors(self) -> dict[str, bytes]:
        cells = self.log.cells
        found = {name: cells.look(name) for name in cells.names(f"group/{GROUP}/slot/")}
        return {name: cell.value for name, cell in found.items() if cell is not None}

    def test_a_member_that_was_paused_and_not_replaced_goes_on(self) -> None:
        self.append("a:1")
        ada = self.member("ada")
        out = ada.poll(1, 0.0)
        self.clock.now_s += 3 * TTL_S
        assert ada.poll(10, 0.0) == []
        assert ada.done(out) == []
        assert self.drain(ada) == []

    def test_dead_members_are_forgotten(self) -> None:
        self.member("ada").poll(0, 0.0)
        bob = self.member("bob")
        self.take_over(bob)
        self.clock.now_s += 2 * TTL_S
        bob.poll(0, 0.0)
        assert len(self.log.cells.names(f"group/{GROUP}/member/")) == 1

    def test_a_member_that_leaves_leaves_only_cursors(self) -> None:
        self.append("a:1")
        consumer = self.member()
        self.drain(consumer)
        consumer.close()
        left = [self.log.cells.look(name) for name in self.log.cells.names()]
        assert all(cell is not None and cell.owner == "" for cell in left)
        assert self.log.cells.names(f"group/{GROUP}/member/") == []

    def test_all_members_take_the_plan_of_the_first(self) -> None:
        self.append("a:1")
        first = self.member("ada", slots=3)
        second = self.member("bob", slots=7, ttl_s=1.0, start=END)
        assert second.plan == first.plan
        assert (first.plan.slots, first.plan.start, first.plan.ttl_s) == (3, 0, TTL_S)

    def test_streams_stay_in_their_slots_for_ever(self) -> None:
        """The function is part of the format of cursors: another one would hand streams to two owners."""
        assert [slot_of(f"run/run-{number}", 8) for number in range(8)] == [3, 0, 7, 3, 7, 2, 5, 7]

    # --- cursors

    def test_a_restart_goes_on_where_the_last_one_committed(self) -> None:
        self.append("a:1", "b:1", "a:2")
        with self.member() as consumer:
            assert len(self.drain(consumer)) == 3
        self.append("a:3")
        assert self.drain(self.member("bob")) == ["a:3"]

    def test_the_cursor_never_passes_an_event_that_is_out(self) -> None:
        self.append("a:1", "b:1", "c:1", "a:2")
        consumer = self.member(slots=1)
        out = consumer.poll(10, 0.0)
        consumer.done([one for one in out if names([one]) != ["b:1"]])
        consumer.close()
        assert "b:1" in self.drain(self.member("bob"))

    def test_cursors_are_committed_at_most_twice_a_second(self) -> None:
        self.append(*(f"a:{number}" for number in range(50)))
        consumer = self.member(slots=1)
        beats = self.beats()
        for _ in range(50):
            consumer.done(consumer.poll(1, 0.0))
            self.clock.now_s += 0.02
        assert self.beats() - beats <= 4
        self.clock.now_s += 1.0
        consumer.poll(1, 0.0)
        (value,) = self.cursors().values()
        assert msgspec.msgpack.decode(value)[0] == 50

    def beats(self) -> int:
        cell = self.log.cells.look(f"group/{GROUP}/slot/0")
        return 0 if cell is None else cell.beat

    def test_the_lag_counts_what_is_not_dealt_with(self) -> None:
        clock = ManualClock(self.log.read()[0].recorded_at if self.append("a:1") == [1] else 0)
        self.append("a:2", "b:1")
        consumer = self.member(clock=clock)
        assert consumer.lag().events == 0, "nothing is this member's yet"
        out = consumer.poll(10, 0.0)
        clock.advance(5_000_000)
        assert consumer.lag().events == 3
        assert consumer.lag().seconds == pytest.approx(5.0)
        consumer.done(out)
        lag = consumer.lag()
        assert (lag.events, lag.seconds) == (0, 0.0)

    def test_gauges_show_lag_and_parked_events(self) -> None:
        self.append("a:1", "b:1")
        consumer = self.member()
        self.park(consumer, "a:1")
        self.clock.now_s += 2.0
        self.drain(consumer)
        self.clock.now_s += 2.0
        consumer.poll(0, 0.0)
        assert HANDLER_LAG_EVENTS.labels(GROUP)._value.get() == 0
        assert HANDLER_PARKED.labels(GROUP)._value.get() == 1

    def test_reading_pauses_while_much_is_held_in_memory(self) -> None:
        for page in range(6):
            batch = [note("a", 500 * page + number) for number in range(500)]
            self.log.append(batch, stream="operator/a", expected=ANY)
        consumer = self.member(most_held=400)
        consumer.failed(consumer.poll(10, 0.0)[0], ValueError("no"))
        for _ in range(10):
            assert consumer.poll(10, 0.0) == []
        assert sum(work.events for work in consumer._holdings.work.values()) <= 900
        self.clock.now_s += 10.0
        assert self.drain(consumer) == [f"a:{number}" for number in range(3000)]

    def test_a_log_that_ends_before_the_cursor_stops_the_consumer(self) -> None:
        self.append("a:1", "a:2")
        with self.member() as consumer:
            self.drain(consumer)
        self.swap_log()
        self.append("a:1")
        consumer = self.member("bob")
        with pytest.raises(LogRegressed, match="the log ends at 1"):
            consumer.poll(10, 0.0)

    def test_another_record_at_the_cursor_stops_the_consumer(self) -> None:
        self.append("a:1", "a:2")
        with self.member() as consumer:
            self.drain(consumer)
        self.swap_log()
        self.append("a:1", "b:7", "a:3")
        consumer = self.member("bob")
        with pytest.raises(LogRegressed, match="another one"):
            consumer.poll(10, 0.0)

    def swap_log(self) -> None:
        """Put another log in place of this one; the cells stay."""
        kept = self.log.cells
        values = {name: kept.look(name) for name in kept.names()}
        self.log = self.next_log()
        for name, cell in values.items():
            assert cell is not None
            taken = self.log.cells.take(name, "x", seen=None)
            assert taken is not None
            self.log.cells.free(self.log.cells.write(taken, cell.value))

    def test_wall_clocks_that_jump_by_hours_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wall = ManualClock()
        monkeypatch.setattr(time, "time", lambda: wall.now_us() / 1e6)
        monkeypatch.setattr(time, "time_ns", lambda: wall.now_us() * 1000)
        consumer = self.member(clock=wall)
        handled = []
        for number, hours in enumerate((0, 9, -30, 200, -1)):
            wall.advance(hours * 3_600_000_000)
            self.append(f"a:{number}", f"b:{number}")
            consumer.failed(consumer.poll(1, 0.0)[0], ValueError("no"))
            wall.advance(hours * 3_600_000_000)
            assert consumer.slots == list(range(4))
            assert consumer.lag().seconds >= 0.0
            handled += self.drain_ready(consumer)
            self.clock.now_s += 1.0
            handled += self.drain(consumer)
        for run in "ab":
            assert [one for one in handled if one[0] == run] == [f"{run}:{number}" for number in range(5)]

    # --- the rest

    def test_published_messages_are_events_like_others(self) -> None:
        fact = MessagePublished(
            topic="lab.notes", message_id="1", trace="t", published_at=0, payload={"loss": float("nan")}
        )
        self.log.append([event(fact, b"m" * 16)], stream=fact.stream, expected=ANY)
        consumer = self.member(topics=["lab.notes"])
        (one,) = consumer.poll(10, 0.0)
        assert isinstance(one.fact, MessagePublished)
        assert one.envelope.stream == "message/lab.notes"

    def test_groups_do_not_know_of_each_other(self) -> None:
        self.append("a:1")
        assert self.drain(self.member()) == ["a:1"]
        assert self.drain(self.member(group="tezzeret")) == ["a:1"]

    def test_a_closed_consumer_gives_nothing_more(self) -> None:
        consumer = self.member()
        consumer.close()
        consumer.close()
        with pytest.raises(HandlerError):
            consumer.poll()

    @pytest.mark.parametrize(
        "options",
        [
            {"topics": []},
            {"slots": 0},
            {"attempts": 0},
            {"ttl_s": 0},
            {"group": "a/b"},
            {"group": ""},
            {"start": 1},
            {"start": -2},
        ],
        ids=str,
    )
    def test_what_cannot_work_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            self.member(**options)


def spoil(monkeypatch: pytest.MonkeyPatch, log: EventLog, position: int, harm: str) -> None:
    """Let a log hold a record that this version of Esper cannot read, as a newer one would have written it."""
    fields = {"type": {"type": "NoSuchFact"}, "payload": {"payload": b"\x81\xa3two\x01"}, "schema": {"schema": 99}}
    read, read_stream = log.read, log.read_stream

    def spoiled(found: list[Any]) -> list[Any]:
        return [msgspec.structs.replace(one, **fields[harm]) if one.position == position else one for one in found]

    monkeypatch.setattr(log, "read", lambda *args, **options: spoiled(read(*args, **options)))
    monkeypatch.setattr(log, "read_stream", lambda *args, **options: spoiled(read_stream(*args, **options)))
