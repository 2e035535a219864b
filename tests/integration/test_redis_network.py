"""What a network loses between a client and Redis: replies, connections, and everything for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.notes import STREAM, append_batches, batch, fingerprint
from faults.proxy import Proxy
from servers import RedisServer

from esper.errors import LogUnavailable
from esper.events import Event
from esper.oona.open import open_log
from esper.oona.port import ANY, EventLog, Receipt
from esper.oona.redis.log import RedisLog

#: How long one reply may take where the network stalls; the log asks four times.
TIMEOUT_S = 0.5
#: Within this a log that cannot be reached must have said so: four replies and the pauses between them.
BOUND_S = 4 * TIMEOUT_S + 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def log(proxy: Proxy) -> Iterator[EventLog]:
    with RedisLog(f"redis://127.0.0.1:{proxy.port}/0", timeout_s=TIMEOUT_S) as log:
        yield log


def insist(log: EventLog, events: list[Event], expected: int) -> Receipt:
    """Append as a producer does: again with the same batch until there is an answer."""
    for _ in range(5):
        try:
            return log.append(events, stream=STREAM, expected=expected)
        except LogUnavailable:
            continue
    raise AssertionError("no answer in five attempts")


# --- case 1: the reply is lost after the server appended


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_append_whose_reply_is_lost_is_one_entry_with_one_receipt(proxy: Proxy, log: EventLog, lost: int) -> None:
    append_batches(log, 1, 2)
    for nth in range(1, lost + 1):
        proxy.eat_reply("FCALL", nth)
    # The exact version no longer holds once the server has the batch; the ids tell that it is the same one.
    receipt = insist(log, batch(1, 2), expected=2)
    assert proxy.eaten == lost
    assert (receipt.first, receipt.last, receipt.version) == (3, 4, 4)
    assert receipt.fsynced
    assert [one.event_id for one in log.read()] == [one.event_id for one in batch(0, 2) + batch(1, 2)]
    assert log.append(batch(1, 2), stream=STREAM, expected=2) == receipt
    assert log.verify().events == 4


def test_a_producer_that_died_before_the_reply_gets_the_first_receipt_when_it_comes_back(
    server: RedisServer, proxy: Proxy, log: EventLog
) -> None:
    append_batches(log, 1, 2)
    proxy.eat_reply("FCALL")
    proxy.part_after_eating()
    with pytest.raises(LogUnavailable):
        log.append(batch(1, 2), stream=STREAM, expected=2)
    log.close()
    with open_log(server.url) as again:
        again.append(batch(2, 2), stream=STREAM, expected=ANY)
        receipt = again.append(batch(1, 2), stream=STREAM, expected=2)
        assert (receipt.first, receipt.last) == (3, 4)
        assert again.verify().events == 6


def test_reads_whose_replies_are_lost_give_the_same_records(proxy: Proxy, log: EventLog) -> None:
    append_batches(log, 5, 4)
    expected = fingerprint(log)
    for name in ("FCALL", "FCALL_RO"):
        proxy.eat_reply(name)
        proxy.eat_reply(name, 3)
    found: list[tuple[object, ...]] = []
    for _ in range(5):
        try:
            found = fingerprint(log)
            break
        except LogUnavailable:
            continue
    assert found == expected
    assert proxy.eaten >= 1


# --- partitions


def test_a_log_behind_a_cut_network_says_so_in_bounded_time_and_goes_on_afterwards(proxy: Proxy, log: EventLog) -> None:
    append_batches(log, 1, 2)
    proxy.part()
    for use in (lambda: log.append(batch(1, 2), stream=STREAM, expected=2), log.head, lambda: log.read(0)):
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            use()
        assert time.monotonic() - began < BOUND_S
    proxy.join()
    assert log.append(batch(1, 2), stream=STREAM, expected=2).last == 4
    assert log.verify().events == 4


def test_connections_that_are_cut_while_idle_are_made_again_unnoticed_or_by_name(proxy: Proxy, log: EventLog) -> None:
    for number in range(5):
        insist(log, batch(number, 2), expected=2 * number)
        proxy.cut()
    assert len(fingerprint_after(log)) == 10
    assert log.verify().events == 10


def fingerprint_after(log: EventLog) -> list[tuple[object, ...]]:
    try:
        return fingerprint(log)
    except LogUnavailable:
        return fingerprint(log)


def test_a_network_that_stalls_is_named_in_bounded_time_and_the_batch_is_there_once(
    proxy: Proxy, log: EventLog
) -> None:
    append_batches(log, 1, 2)
    proxy.stall()
    began = time.monotonic()
    with pytest.raises(LogUnavailable):
        log.append(batch(1, 2), stream=STREAM, expected=2)
    assert time.monotonic() - began < BOUND_S
    # What was held comes through late, perhaps together with the retry.
    proxy.flow()
    receipt = insist(log, batch(1, 2), expected=2)
    assert (receipt.first, receipt.last) == (3, 4)
    assert log.verify().events == 4


def test_a_server_that_hangs_is_named_in_bounded_time_and_goes_on_afterwards(server: RedisServer) -> None:
    assert server.process is not None
    with RedisLog(server.url, timeout_s=TIMEOUT_S) as log:
        append_batches(log, 1, 2)
        server.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(LogUnavailable):
                log.append(batch(1, 2), stream=STREAM, expected=2)
            assert time.monotonic() - began < BOUND_S
        finally:
            server.process.send_signal(signal.SIGCONT)
        receipt = insist(log, batch(1, 2), expected=2)
        assert (receipt.first, receipt.last) == (3, 4)
        assert log.verify().events == 4


def test_a_slow_network_loses_and_doubles_nothing(proxy: Proxy, log: EventLog) -> None:
    proxy.delay_s = 0.3
    receipts = [insist(log, batch(number, 2), expected=2 * number) for number in range(3)]
    assert [(one.first, one.last) for one in receipts] == [(1, 2), (3, 4), (5, 6)]
    proxy.delay_s = 0.0
    assert log.verify().events == 6


def test_a_wait_outlives_a_cut_network_or_names_it(server: RedisServer, proxy: Proxy, log: EventLog) -> None:
    """A follower that waits while the network goes must end in bounded time, and find what came meanwhile."""
    parting = threading.Timer(0.2, proxy.part)
    parting.start()
    began = time.monotonic()
    with contextlib.suppress(LogUnavailable):
        log.wait(0, 1.0)
    assert time.monotonic() - began < BOUND_S
    parting.join()
    with open_log(server.url) as other:
        append_batches(other, 1, 2)
    proxy.join()
    assert log.wait(0, 5.0) is True
    assert len(log.read()) == 2
