"""Whatever members of a group do or suffer, every event is dealt with, in order, by one owner at a time."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from esper.errors import NotFound
from esper.events import Event, Fact
from esper.events.handler import BacklogHandled
from esper.events.operator import NoteAdded
from esper.events.run import RunPaused, TrainingStepCompleted
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona import ANY, MemoryLog
from esper.oona.consuming.consumer import Consumer, Delivery
from esper.oona.consuming.parking import ParkedState, parked_events, retry, skip
from esper.oona.consuming.slots import committed_slots, slot_of

GROUP = "urza"
TTL_S = 1000.0
STREAMS = ("operator/a", "operator/b", "operator/c", "run/d", "run/e")
#: ``RunPaused`` stands on the same streams as steps and is not of these topics.
TOPICS = (TopicNames.OPERATOR_ACTIONS, TopicNames.TRAINING_STEPS)
MEMBERS = st.integers(0, 2)
#: Of what a member has in hand: which part it handles, and which part it handles or fails at.
LUCK = ((0.7, 1.0), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (0.3, 0.3))
#: What is appended, which member works, how many events it takes at most, its luck, and how long nothing happens then.
TURNS = st.tuples(
    st.lists(st.sampled_from(STREAMS), max_size=3),
    MEMBERS,
    st.integers(1, 6),
    st.sampled_from(LUCK),
    st.sampled_from([1.0, 0.3, 0.0, 60.0]),
)
CALM = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def fact_for(stream: str, number: int, *, other: bool) -> Fact:
    kind, _, name = stream.partition("/")
    if kind == "operator":
        return NoteAdded(run_id=name, actor="ada", text=str(number))
    if other:
        return RunPaused(run_id=name, attempt=1, ordinal=number, step=number, reason="r")
    return TrainingStepCompleted(
        run_id=name,
        attempt=1,
        ordinal=number,
        epoch=0,
        step=number,
        loss=0.5,
        learning_rate=0.1,
        samples_digest=b"s" * 16,
        duration_s=0.1,
    )


def is_before(one: Delivery, other: Delivery) -> bool:
    """Tell whether one is an earlier event of the same stream."""
    return one.envelope.stream == other.envelope.stream and one.envelope.version < other.envelope.version


class Member:
    """A consumer and what it has in hand."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.out: list[Delivery] = []


class ConsumerMachine(RuleBasedStateMachine):
    """Up to three members live, stop, wake up, die, fail and finish, while facts are appended and people decide."""

    @initialize(slots=st.integers(1, 3), attempts=st.integers(1, 2))
    def begin(self, slots: int, attempts: int) -> None:
        self.now_s = 0.0
        self.log = MemoryLog()
        self.slots = slots
        self.attempts = attempts
        self.members: list[Member | None] = [None, None, None]
        self.everybody: list[Consumer] = []
        self.count = 0
        #: (stream, version) of every event of the topics, and of those that were handled.
        self.wanted: dict[str, list[int]] = {stream: [] for stream in STREAMS}
        self.handled: set[tuple[str, int]] = set()
        self.skipped: set[tuple[str, int]] = set()
        self.join(0)
        self.join(1)

    # --- what happens

    def append(self, stream: str, *, other: bool) -> None:
        self.count += 1
        fact = fact_for(stream, self.count, other=other)
        event = Event(fact=fact, event_id=derived_id(self.count), sender_id="t", trace_id="0" * 32)
        version = self.log.append([event], stream=stream, expected=ANY).version
        if fact.topic_name in TOPICS:
            self.wanted[stream].append(version)

    @rule(which=MEMBERS)
    def join(self, which: int) -> None:
        if self.members[which] is None:
            consumer = Consumer(
                self.log,
                group=GROUP,
                member=f"m{which}.{len(self.everybody):04}",
                topics=TOPICS,
                sender_id="handler:urza",
                trace_id="1" * 32,
                ttl_s=TTL_S,
                slots=self.slots,
                attempts=self.attempts,
                most_held=6,
                first_delay_s=0.5,
                monotonic=lambda: self.now_s,
                chance=lambda: 1.0,
            )
            self.everybody.append(consumer)
            self.members[which] = Member(consumer)

    @rule(which=MEMBERS)
    def leave(self, which: int) -> None:
        if (member := self.members[which]) is not None:
            member.consumer.close()
            self.members[which] = None

    @rule(which=MEMBERS)
    def die(self, which: int) -> None:
        """As kill -9 does: nothing is committed, nothing given up."""
        self.members[which] = None

    @rule(turns=st.lists(TURNS, min_size=1, max_size=12), seed=st.integers(0, 1 << 32))
    def work(self, turns: list[tuple[list[str], int, int, tuple[float, float], float]], seed: int) -> None:
        """Let members work in turn: each takes what comes, handles some of it, fails at some and keeps the rest."""
        draw = random.Random(seed)
        for streams, which, limit, luck, pause_s in turns:
            for stream in streams:
                self.append(stream, other=draw.random() < 0.3)
            if (member := self.members[which]) is not None:
                self.work_on(member, limit, luck, draw)
            self.now_s += pause_s

    def work_on(self, member: Member, limit: int, luck: tuple[float, float], draw: random.Random) -> None:
        self.take(member, limit)
        for delivery in sorted(member.out, key=lambda one: one.envelope.position):
            if delivery not in member.out:
                continue  # withdrawn, because an earlier one of its stream failed
            chance = draw.random()
            if chance < luck[0]:
                # As a handler does: in order within a stream.
                if not any(is_before(one, delivery) for one in member.out):
                    self.handle(member, delivery)
            elif chance < luck[1]:
                member.out.remove(delivery)
                member.consumer.failed(delivery, ValueError("no"))
                member.out = [one for one in member.out if member.consumer.holds(one)]

    def take(self, member: Member, limit: int) -> None:
        for delivery in member.consumer.poll(limit, 0.0):
            stream = delivery.envelope.stream
            assert delivery.envelope.topic in TOPICS
            assert member.consumer.holds(delivery)
            for other in self.members:
                if other is not None and other is not member:
                    assert not other.consumer.owns(stream), f"{stream} has two owners"
                    assert not any(other.consumer.holds(one) for one in other.out if one.envelope.stream == stream)
            assert (stream, delivery.envelope.version) not in self.skipped
            member.out.append(delivery)

    def handle(self, member: Member, delivery: Delivery) -> None:
        member.out.remove(delivery)
        held = member.consumer.holds(delivery)
        if held:
            stream, version = delivery.envelope.stream, delivery.envelope.version
            if (stream, version) not in self.handled:
                before = {(stream, earlier) for earlier in self.wanted[stream] if earlier < version}
                assert before <= self.handled | self.skipped, f"{stream} {version} before its turn"
            self.handled.add((stream, version))
        missed = member.consumer.done([delivery])
        assert missed == ([] if held else [delivery])

    @rule(which=MEMBERS)
    def give_back(self, which: int) -> None:
        if (member := self.members[which]) is not None:
            member.consumer.release(member.out)
            member.out = []

    @rule(seconds=st.sampled_from([1.0, 400.0, 1100.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(act=st.sampled_from([retry, skip]), place=st.integers(0, 4))
    def decide(self, act: Any, place: int) -> None:
        parked = [one for one in parked_events(self.log, GROUP) if one.state is ParkedState.PARKED]
        if parked:
            one = parked[place % len(parked)]
            act(self.log, GROUP, one.position, actor="ada", reason="r", trace_id="2" * 32)
            if act is skip:
                self.skipped.add((one.stream, one.version))

    @rule(place=st.integers(0, 4))
    def end_late(self, place: int) -> None:
        """A former owner of a slot ends a backlog that it had handled, and has not seen what was appended since.

        It knew of the release when it lost the slot, so that every owner since knows of it too.
        """
        released = [one for one in parked_events(self.log, GROUP) if one.state is not ParkedState.PARKED]
        if not released:
            return
        one = released[place % len(released)]
        living = [member.consumer for member in self.members if member is not None]
        owners = [each for each in living if each._holdings.of(one.stream) is not None]
        if not all(one.stream in owner._setbacks.parking.released for owner in owners):
            return
        through = max(one.position, self.committed().get(one.stream, 0))
        dealt_with = self.handled | self.skipped
        for envelope in self.log.read_stream(one.stream, one.version - 1):
            wanted = envelope.position <= through and envelope.topic in TOPICS
            if wanted and (one.stream, envelope.version) not in dealt_with:
                return
        late = BacklogHandled(handler=GROUP, position=one.position, parking=one.parking, through=through)
        cause = derived_id("handler", GROUP, "handled", one.position, one.parking)
        event = Event(fact=late, event_id=cause, sender_id="t", trace_id="0" * 32)
        self.log.append([event], stream=late.stream, expected=ANY)

    # --- what holds

    @invariant()
    @precondition(lambda self: hasattr(self, "log"))
    def no_cursor_passes_what_is_not_dealt_with(self) -> None:
        """What a group would do if all its members died now loses nothing."""
        waiting = {one.stream: one.version for one in parked_events(self.log, GROUP)}
        cursors = self.committed()
        for stream, versions in self.wanted.items():
            for version in versions:
                if (stream, version) in self.handled | self.skipped:
                    continue
                (envelope,) = self.log.read_stream(stream, version - 1, 1)
                behind = stream in waiting and version >= waiting[stream]
                assert behind or envelope.position > cursors.get(stream, 0), f"{stream} {version} is lost"

    def committed(self) -> dict[str, int]:
        found = committed_slots(self.log.cells, GROUP)
        values = {slot: _position(value) for slot, value in found.items()}
        return {stream: values.get(slot_of(stream, self.slots), 0) for stream in STREAMS}

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        try:
            self.bring_to_an_end()
        finally:
            for consumer in self.everybody:
                consumer.close()

    def bring_to_an_end(self) -> None:
        """One living member deals with everything that is left, once people have decided."""
        self.members = [None, None, None]
        self.join(0)
        (member,) = [one for one in self.members if one is not None]
        for turn in range(400):
            self.now_s += 300.0 if turn < 12 else 1.0
            self.take(member, 6)
            for delivery in list(member.out):
                self.handle(member, delivery)
            for one in parked_events(self.log, GROUP):
                if one.state is ParkedState.PARKED:
                    try:
                        retry(self.log, GROUP, one.position, actor="ada", reason="r", trace_id="2" * 32)
                    except NotFound as gone:
                        raise AssertionError(f"{one} was listed as parked") from gone
            everything = {(stream, version) for stream, versions in self.wanted.items() for version in versions}
            if everything <= self.handled | self.skipped and turn > 12 and not parked_events(self.log, GROUP):
                break
        assert everything <= self.handled | self.skipped, "something was never handled"
        assert parked_events(self.log, GROUP) == []


def _position(value: bytes) -> int:
    return int(msgspec.msgpack.decode(value)[0]) if value else 0


def test_any_life_of_a_group_deals_with_every_event_in_order_by_one_owner() -> None:
    run_state_machine_as_test(ConsumerMachine, settings=CALM)
