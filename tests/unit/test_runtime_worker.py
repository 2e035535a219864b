"""The worker: concurrent across streams and never within one; what is in hand is finished, what failed is retried."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from noting import TOPIC, add_notes, texts_of

from esper.artifacts.memory import MemoryStore
from esper.errors import ArtifactMissing, ArtifactStoreUnavailable, ConcurrencyConflict, LeaseLost, LogUnavailable
from esper.events import Envelope
from esper.events.operator import NoteAdded
from esper.handlers.runtime.handler import Context
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.worker import Worker
from esper.ids import derived_id
from esper.oona.consuming.consumer import Consumer
from esper.oona.consuming.parking import parked_events, retry
from esper.oona.memory import MemoryLog

Handle = Callable[[Envelope, Context], Any]


class Notes:
    """A handler made of a function."""

    name = "notes"
    topics = (TOPIC,)

    def __init__(self, handle: Handle) -> None:
        self.handle = handle


class Runs:
    """Runs workers of one group over one log, one after another or at the same time."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    def __call__(
        self,
        handle: Handle,
        *,
        meanwhile: Callable[[Life], Awaitable[object]] | None = None,
        concurrency: int = 4,
        attempts: int = 3,
        drain_s: float = 10.0,
    ) -> bool:
        """Work until nothing is left to do, or ``meanwhile`` stops it; return whether everything ended."""
        return asyncio.run(self._work(handle, meanwhile, concurrency, attempts, drain_s))

    async def _work(
        self,
        handle: Handle,
        meanwhile: Callable[[Life], Awaitable[object]] | None,
        concurrency: int,
        attempts: int,
        drain_s: float,
    ) -> bool:
        life = Life(Health("notes", "a"), drain_s=drain_s, until_idle=meanwhile is None)
        consumer = Consumer(
            self.log,
            group="notes",
            member="a",
            topics=(TOPIC,),
            attempts=attempts,
            ttl_s=0.5,
            first_delay_s=0.01,
            sender_id="handler:notes",
            trace_id="ab" * 16,
        )
        worker = Worker(consumer, Notes(handle), log=self.log, store=MemoryStore(), concurrency=concurrency)
        aside = asyncio.ensure_future(meanwhile(life)) if meanwhile is not None else None
        ended = await worker.run(life)
        if aside is not None:
            await aside
        return ended


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as log:
        yield log


@pytest.fixture
def work(log: MemoryLog) -> Runs:
    return Runs(log)


async def until(true: Callable[[], object]) -> None:
    """Wait for something that other threads bring about."""
    while not true():
        await asyncio.sleep(0.005)


def test_every_event_is_handled_in_the_order_of_its_stream(log: MemoryLog, work: Runs) -> None:
    add_notes(log, *[(f"run-{number % 5}", str(number)) for number in range(100)])
    seen: defaultdict[str, list[int]] = defaultdict(list)

    async def handle(envelope: Envelope, _: Context) -> None:
        seen[envelope.stream].append(envelope.version)

    assert work(handle)
    assert dict(seen) == {f"operator/run-{number}": list(range(1, 21)) for number in range(5)}


def test_streams_are_handled_at_the_same_time_but_never_two_events_of_one(log: MemoryLog, work: Runs) -> None:
    add_notes(log, *[(f"run-{number % 3}", str(number)) for number in range(12)])
    running: Counter[str] = Counter()
    most_of_one = most_in_all = 0

    async def handle(envelope: Envelope, _: Context) -> None:
        nonlocal most_of_one, most_in_all
        running[envelope.stream] += 1
        most_of_one = max(most_of_one, running[envelope.stream])
        most_in_all = max(most_in_all, running.total())
        await asyncio.sleep(0.01)
        running[envelope.stream] -= 1

    assert work(handle, concurrency=3)
    assert (most_of_one, most_in_all) == (1, 3)


def test_concurrency_bounds_what_runs_at_the_same_time(log: MemoryLog, work: Runs) -> None:
    add_notes(log, *[(f"run-{number}", "x") for number in range(12)])
    running = most = 0

    async def handle(_: Envelope, __: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    assert work(handle, concurrency=2)
    assert most == 2


def test_plain_function_runs_in_a_thread_and_the_loop_goes_on(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "x"))
    entered, released = threading.Event(), threading.Event()
    threads = []

    def handle(_: Envelope, __: Context) -> None:
        threads.append(threading.current_thread())
        entered.set()
        assert released.wait(10)

    async def meanwhile(life: Life) -> None:
        # Only a loop that is not blocked gets here and lets the function go on.
        await until(entered.is_set)
        released.set()
        life.stop("test")

    assert work(handle, meanwhile=meanwhile)
    assert threads != [threading.main_thread()]


def test_result_of_an_event_is_appended_once_however_often_it_is_tried(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))
    positions = []

    async def handle(envelope: Envelope, context: Context) -> None:
        positions.append(await context.emit(NoteAdded(run_id="answers", actor="h", text="one")))
        positions.append(await context.emit(NoteAdded(run_id="answers", actor="h", text="two")))
        if context.attempt < 3:
            raise ValueError("not yet")

    handle_answers = only_run("run-1", handle)
    assert work(handle_answers)
    assert texts_of(log, "answers") == ["one", "two"]
    assert positions == [2, 3] * 3
    (answer, *_) = log.read_stream("operator/answers")
    assert (answer.sender_id, answer.causation_id) == ("handler:notes", log.read(0, 1)[0].event_id)


def test_first_result_stands_where_a_retry_says_something_else(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))

    def handle(_: Envelope, context: Context) -> None:
        position = context.append(NoteAdded(run_id="answers", actor="h", text=f"attempt {context.attempt}"))
        assert position == 2
        if context.attempt == 1:
            raise ValueError("killed after the effect")

    assert work(only_run("run-1", handle))
    assert texts_of(log, "answers") == ["attempt 1"]
    assert parked_events(log) == []


def test_cause_tells_results_apart_that_come_in_any_order(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))

    async def handle(_: Envelope, context: Context) -> None:
        parts = ("x", "y") if context.attempt == 1 else ("y", "x")
        for part in parts:
            await context.emit(NoteAdded(run_id="answers", actor="h", text=part), part)
        if context.attempt == 1:
            raise ValueError("again")

    assert work(only_run("run-1", handle))
    assert texts_of(log, "answers") == ["x", "y"]


def test_event_that_keeps_failing_is_parked_and_only_its_stream_waits(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "bad"), ("run-2", "good"), ("run-1", "behind"), ("run-2", "good too"))
    handled: list[str] = []
    tries: list[int] = []

    async def handle(_: Envelope, context: Context) -> None:
        text = text_of(context)
        if text == "bad":
            tries.append(context.attempt)
            raise ValueError("no")
        handled.append(text)

    assert work(handle, attempts=3)
    assert (handled, tries) == (["good", "good too"], [1, 2, 3])
    (parked,) = parked_events(log)
    assert (parked.position, parked.cause) == (1, "ValueError")


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(3), asyncio.CancelledError(), RecursionError()])
@pytest.mark.parametrize("plain", [True, False])
def test_whatever_a_handler_raises_is_the_events_fate(
    log: MemoryLog, work: Runs, raised: BaseException, plain: bool
) -> None:
    add_notes(log, ("run-1", "bad"), ("run-2", "good"))
    handled = []

    def handle(_: Envelope, context: Context) -> None:
        if text_of(context) == "bad":
            raise raised
        handled.append(text_of(context))

    async def handle_async(envelope: Envelope, context: Context) -> None:
        handle(envelope, context)

    assert work(handle if plain else handle_async, attempts=2)
    assert handled == ["good"]
    assert [parked.position for parked in parked_events(log)] == [1]


def test_coroutine_behind_a_plain_wrapper_is_awaited(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))
    handled = []

    async def handle(_: Envelope, context: Context) -> None:
        await asyncio.sleep(0)
        handled.append(text_of(context))

    def wrapped(envelope: Envelope, context: Context) -> Any:
        return handle(envelope, context)

    assert work(wrapped)
    assert handled == ["a"]


def test_until_idle_includes_what_a_person_released(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "bad"), ("run-1", "behind"))
    broken, handled = True, []

    async def handle(_: Envelope, context: Context) -> None:
        # Failing once more after the release: the worker must not take the wait for the next try for idleness.
        if text_of(context) == "bad" and (broken or context.attempt == 1):
            raise ValueError("no")
        handled.append(text_of(context))

    assert work(handle, attempts=2)
    retry(log, "notes", 1, actor="ada", reason="mended", trace_id="ab" * 16)
    broken = False
    assert work(handle, attempts=2)
    assert handled == ["bad", "behind"]
    assert parked_events(log) == []


def test_until_idle_waits_for_what_a_dead_member_held(log: MemoryLog, work: Runs) -> None:
    add_notes(log, *[(f"run-{number}", "before") for number in range(16)])
    handled: list[str] = []

    async def handle(envelope: Envelope, _: Context) -> None:
        handled.append(envelope.stream)

    assert work(handle)
    for name in log.cells.names("group/notes/slot/"):
        log.cells.take(name, "dead#1", seen=log.cells.look(name))
    add_notes(log, *[(f"run-{number}", "after") for number in range(16)])
    assert work(handle)
    assert len(handled) == 32


def test_lost_log_is_not_the_events_fault(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"), ("run-1", "b"))
    failures, handled = 4, []

    async def handle(envelope: Envelope, context: Context) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise LogUnavailable("the log is away")
        assert context.attempt == 1
        handled.append(envelope.position)

    began_s = time.monotonic()
    assert work(handle, attempts=1)
    assert handled == [1, 2]
    assert parked_events(log) == []
    # Waits grow from try to try, although the log can be read in between: 0.1 + 0.2 + 0.4 + 0.8 s.
    assert time.monotonic() - began_s > 1.4


def test_nothing_is_appended_after_the_stream_was_lost(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))
    refused = []

    async def handle(envelope: Envelope, context: Context) -> None:
        if refused:
            return
        # Another process takes the slot, as it would from one that was paused for too long.
        for name in log.cells.names("group/notes/slot/"):
            log.cells.take(name, "thief", seen=log.cells.look(name))
        await until(lambda: not context.still_owner())
        try:
            await context.emit(NoteAdded(run_id="answers", actor="h", text="late"))
        except LeaseLost as error:
            refused.append(error)
            for name in log.cells.names("group/notes/slot/"):
                cell = log.cells.look(name)
                assert cell is not None
                log.cells.free(cell)
            raise

    assert work(handle)
    assert len(refused) == 1
    assert texts_of(log, "answers") == []
    assert parked_events(log) == []


def test_drain_finishes_what_is_in_hand_and_begins_nothing(log: MemoryLog, work: Runs) -> None:
    add_notes(log, *[("run-1", str(number)) for number in range(10)])
    handled = []

    async def first(envelope: Envelope, _: Context) -> None:
        if envelope.position == 3:
            stopped.set()
            await asyncio.sleep(0.1)
        handled.append(envelope.position)

    stopped = asyncio.Event()

    async def stop(life: Life) -> None:
        await stopped.wait()
        life.stop("test")

    assert work(first, meanwhile=stop)
    assert handled == [1, 2, 3]
    # Slots were given up: nobody has to wait for a lease to expire.
    slots = [log.cells.look(name) for name in log.cells.names("group/notes/slot/")]
    assert slots
    assert {cell.owner for cell in slots if cell is not None} == {""}

    async def second(envelope: Envelope, _: Context) -> None:
        handled.append(envelope.position)

    assert work(second)
    assert handled == list(range(1, 11))


def test_coroutine_that_outlives_the_drain_is_cancelled_and_done_again(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))
    handled = []

    async def never(_: Envelope, __: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()

    async def stop(life: Life) -> None:
        await begun.wait()
        life.stop("test")

    assert work(never, meanwhile=stop, drain_s=0.05)

    async def handle(envelope: Envelope, context: Context) -> None:
        handled.append((envelope.position, context.attempt))

    assert work(handle)
    assert handled == [(1, 1)]


def test_function_that_outlives_the_drain_is_abandoned_and_not_committed(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"))
    begun, released = threading.Event(), threading.Event()
    handled = []

    def stuck(_: Envelope, __: Context) -> None:
        begun.set()
        assert released.wait(20)

    async def stop(life: Life) -> None:
        await until(begun.is_set)
        life.stop("test")
        threading.Timer(2.5, released.set).start()

    assert not work(stuck, meanwhile=stop, drain_s=0.05)
    for name in log.cells.names("group/notes/"):
        # The process would be gone now; here its thread that renews leases must be shut out.
        cell = log.cells.look(name)
        if cell is not None and cell.owner:
            log.cells.free(cell)

    async def handle(envelope: Envelope, _: Context) -> None:
        handled.append(envelope.position)

    assert work(handle)
    assert handled == [1]


def test_error_of_the_log_that_does_not_pass_ends_the_worker(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "a"), ("run-1", "b"))

    async def handle(_: Envelope, __: Context) -> None:
        return

    assert work(handle)
    # The log is replaced by a shorter one under the cursors.
    with MemoryLog() as other:
        add_notes(other, ("run-1", "a"))
        other._cells = log._cells
        with pytest.raises(Exception, match="went backwards"):
            Runs(other)(handle)


def text_of(context: Context) -> str:
    assert isinstance(context.fact, NoteAdded)
    return context.fact.text


def only_run(run: str, handle: Handle) -> Handle:
    """Return a handler that reacts to one run's notes: its own answers come to it as well."""
    if asyncio.iscoroutinefunction(handle):

        async def wrapped(envelope: Envelope, context: Context) -> None:
            if envelope.stream == f"operator/{run}":
                await handle(envelope, context)

        return wrapped

    def called(envelope: Envelope, context: Context) -> None:
        if envelope.stream == f"operator/{run}":
            handle(envelope, context)

    return called


# --- results under ids of their own, and what is waited for


def test_a_result_under_an_id_of_its_own_is_said_once_whoever_says_it(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "x"), ("run-2", "x"))
    own, positions, tokens = derived_id("said once"), [], []

    async def handle(_: Envelope, context: Context) -> None:
        if context.fact.run_id == "answers":
            return
        tokens.append(context.token)
        positions.append(await context.emit_as(own, NoteAdded(run_id="answers", actor="a", text=context.fact.run_id)))

    assert work(handle)
    assert len(texts_of(log, "answers")) == 1
    assert len(set(positions)) == 1
    assert min(tokens) >= 1


def test_a_result_for_a_version_that_is_past_is_refused(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "x"), ("answers", "first"))
    refused = []

    def handle(_: Envelope, context: Context) -> None:
        if context.fact.run_id == "answers":
            return
        try:
            context.append_as(derived_id("late"), NoteAdded(run_id="answers", actor="a", text="late"), expected=0)
        except ConcurrencyConflict as error:
            refused.append(error.current)

    assert work(handle)
    assert (refused, texts_of(log, "answers")) == ([1], ["first"])


def test_a_store_that_is_away_is_no_try_and_other_artifact_errors_are(log: MemoryLog, work: Runs) -> None:
    add_notes(log, ("run-1", "x"), ("run-2", "x"))
    failures = {"run-1": [ArtifactStoreUnavailable("away")] * 4, "run-2": [ArtifactMissing("gone")] * 9}
    attempts = defaultdict(list)

    async def handle(_: Envelope, context: Context) -> None:
        attempts[context.fact.run_id].append(context.attempt)
        if left := failures[context.fact.run_id]:
            raise left.pop()

    assert work(handle, attempts=2)
    assert attempts == {"run-1": [1] * 5, "run-2": [1, 2]}
    assert [one.stream for one in parked_events(log, "notes")] == ["operator/run-2"]


def test_a_handler_that_can_be_closed_is_closed_at_the_end(log: MemoryLog) -> None:
    closed = []

    class Closing(Notes):
        def close(self) -> None:
            closed.append(threading.current_thread())

    async def nothing(_: Envelope, __: Context) -> None:
        return

    async def run() -> None:
        consumer = Consumer(log, group="notes", member="a", topics=(TOPIC,), sender_id="n", trace_id="ab" * 16)
        life = Life(Health("notes", "a"), drain_s=1.0, until_idle=True)
        assert await Worker(consumer, Closing(nothing), log=log, store=MemoryStore()).run(life)

    asyncio.run(run())
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()
