"""Any sequence of log operations gives what a plain list would give (I1 to I5, I12)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from servers import RedisCluster, RedisServer

from esper.clock import ManualClock
from esper.errors import ConcurrencyConflict, EventIdReused
from esper.events import Event, fact_of
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona import ANY, EventLog, MemoryLog, Receipt, SqliteLog
from esper.oona.redis.log import RedisLog

RUNS = st.sampled_from(["a", "b", "c"])
#: Few ids and few texts, so that retries, overlaps and reuses are common.
NOTES = st.tuples(st.integers(0, 25), st.sampled_from(["x", "y"]))
BATCHES = st.lists(NOTES, min_size=1, max_size=4, unique_by=lambda one: one[0])
EXPECTED = st.one_of(st.just(ANY), st.just("current"), st.integers(0, 6))
CALM = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def event(run: str, number: int, text: str) -> Event:
    fact = NoteAdded(run_id=run, actor="ada", text=text)
    return Event(fact=fact, event_id=derived_id(number), sender_id="test", trace_id="0" * 32)


class LogMachine(RuleBasedStateMachine):
    """Drives a log and a plain list side by side."""

    def open_log(self, clock: ManualClock) -> EventLog:
        raise NotImplementedError

    def reopen_log(self, log: EventLog, clock: ManualClock) -> EventLog:
        """Return the same log after a close, where it outlives one."""
        return log

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.log = self.open_log(self.clock)
        #: (run, number, text) of every fact, in order.
        self.model: list[tuple[str, int, str]] = []
        self.receipts: list[tuple[Receipt, list[Event]]] = []

    def _version(self, run: str) -> int:
        return sum(one[0] == run for one in self.model)

    @rule(run=RUNS, batch=BATCHES, expected=EXPECTED, jump_us=st.integers(-(10**10), 10**10))
    def append(self, run: str, batch: list[tuple[int, str]], expected: Any, jump_us: int) -> None:
        self.clock.advance(jump_us)
        current = self._version(run)
        wanted = current if expected == "current" else expected
        known = {number: (place, text, owner) for place, (owner, number, text) in enumerate(self.model, 1)}
        there = [known[number] for number, _ in batch if number in known]
        same = all(known[number][1:] == (text, run) for number, text in batch if number in known)
        events = [event(run, number, text) for number, text in batch]
        outcome: Any
        try:
            outcome = self.log.append(events, stream=f"operator/{run}", expected=wanted)
        except (ConcurrencyConflict, EventIdReused) as error:
            outcome = error
        if there:
            if len(there) == len(batch) and same:
                assert isinstance(outcome, Receipt)
                assert (outcome.first, outcome.last) == (min(there)[0], max(there)[0])
            else:
                assert isinstance(outcome, EventIdReused)
        elif wanted not in (ANY, current):
            assert isinstance(outcome, ConcurrencyConflict)
            assert outcome.current == current
        else:
            self.model += [(run, number, text) for number, text in batch]
            last = len(self.model)
            assert outcome == Receipt(last - len(batch) + 1, last, current + len(batch), self.log.fsynced, 0)
            self.receipts.append((outcome, events))

    @rule(draw=st.randoms(use_true_random=False), times=st.integers(1, 3))
    def retry(self, draw: Any, times: int) -> None:
        if self.receipts:
            receipt, events = draw.choice(self.receipts)
            for _ in range(times):
                again = self.log.append(events, stream=events[0].fact.stream, expected=draw.choice([ANY, 0, 3]))
                assert again == receipt

    @rule()
    def reopen(self) -> None:
        self.log = self.reopen_log(self.log, self.clock)

    @rule(after=st.integers(0, 40), limit=st.integers(0, 9), until=st.none() | st.integers(0, 40))
    def read(self, after: int, limit: int, until: int | None) -> None:
        end = len(self.model) if until is None else until
        wanted = self.model[after:end][:limit]
        for topics in (None, [TopicNames.OPERATOR_ACTIONS, TopicNames.TRAINING_STEPS]):
            found = self.log.read(after, limit, topics=topics, until=until)
            assert [one.position for one in found] == list(range(after + 1, after + 1 + len(wanted)))
            assert [_text(one) for one in found] == [text for _, _, text in wanted]
        assert self.log.read(after, limit, topics=[TopicNames.TRAINING_STEPS]) == []

    @rule(run=RUNS, after=st.integers(0, 10), limit=st.integers(0, 9))
    def read_stream(self, run: str, after: int, limit: int) -> None:
        texts = [text for owner, _, text in self.model if owner == run][after:][:limit]
        found = self.log.read_stream(f"operator/{run}", after, limit)
        assert [one.version for one in found] == list(range(after + 1, after + 1 + len(texts)))
        assert [_text(one) for one in found] == texts

    @rule()
    def verify(self) -> None:
        assert self.log.verify().events == len(self.model)

    @invariant()
    def the_log_is_the_list(self) -> None:
        found = self.log.read(limit=1000)
        assert [one.position for one in found] == list(range(1, len(self.model) + 1))
        assert [(one.stream, one.event_id, _text(one)) for one in found] == [
            (f"operator/{run}", derived_id(number), text) for run, number, text in self.model
        ]
        times = [one.recorded_at for one in found]
        assert times == sorted(times)
        for run in "abc":
            assert self.log.stream_version(f"operator/{run}") == self._version(run)
            versions = [one.version for one in found if one.stream == f"operator/{run}"]
            assert versions == list(range(1, len(versions) + 1))
        assert self.log.streams() == sorted({f"operator/{run}" for run, _, _ in self.model})
        assert self.log.head().position == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()


def _text(envelope: Any) -> str:
    fact = fact_of(envelope)
    assert isinstance(fact, NoteAdded)
    return fact.text


class MemoryMachine(LogMachine):
    def open_log(self, clock: ManualClock) -> EventLog:
        return MemoryLog(clock)


class SqliteMachine(LogMachine):
    def open_log(self, clock: ManualClock) -> EventLog:
        self.folder = Path(tempfile.mkdtemp(prefix="log-machine-"))
        return SqliteLog(self.folder / "log.db", clock=clock)

    def reopen_log(self, log: EventLog, clock: ManualClock) -> EventLog:
        log.close()
        return SqliteLog(self.folder / "log.db", create=False, clock=clock)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class RedisMachine(LogMachine):
    #: Set by the test: a server that several machines use one after the other.
    url: ClassVar[str]
    opened: ClassVar[int] = 0

    def open_log(self, clock: ManualClock) -> EventLog:
        RedisMachine.opened += 1
        self.mine = f"{self.url}?namespace=log{RedisMachine.opened}"
        return RedisLog(self.mine, clock=clock)

    def reopen_log(self, log: EventLog, clock: ManualClock) -> EventLog:
        log.close()
        return RedisLog(self.mine, create=False, clock=clock)


@pytest.mark.parametrize("machine", [MemoryMachine, SqliteMachine])
def test_any_sequence_of_operations_gives_what_a_list_gives(machine: type[LogMachine]) -> None:
    run_state_machine_as_test(machine, settings=CALM)


@pytest.mark.parametrize("kind", [RedisServer, RedisCluster])
def test_any_sequence_of_operations_gives_what_a_list_gives_on_redis(
    kind: type[RedisServer | RedisCluster], tmp_path: Path
) -> None:
    with kind(tmp_path) as servers:
        machine = type("Machine", (RedisMachine,), {"url": servers.url})
        run_state_machine_as_test(machine, settings=CALM)
