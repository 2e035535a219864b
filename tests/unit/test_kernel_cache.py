"""Kernels in memory: one fetch for all who want one, a bound in bytes, pins, failures told, and threads that end."""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from slow_kernels import PATIENCE_S, Slow, ids, kernels, settled

from esper.artifacts import open_store
from esper.artifacts.memory import MemoryShelf
from esper.blueprints.kernels.kernel import Kernel, load_module
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ArtifactDamaged, ArtifactMissing, GrowthError
from esper.kasmina.cache import KernelCache, size_of


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Do something on several threads at once and return what each got or raised."""
    results: list[Any] = []

    def one() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return results


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def made(slow: Slow) -> Iterator[Callable[..., KernelCache]]:
    """Make caches that end with the test."""
    caches: list[KernelCache] = []

    def make(fetch: Callable[[str], Kernel] = slow, *, max_bytes: int = 1 << 20, **more: Any) -> KernelCache:
        caches.append(KernelCache(fetch, max_bytes=max_bytes, **more))
        return caches[-1]

    yield make
    slow.gate.set()
    for one in caches:
        one.close()


def bytes_of(*wanted: str) -> int:
    shelf = Slow().shelf
    return sum(size_of(shelf.get(one)) for one in wanted)


# --- one fetch for all


def test_a_kernel_is_fetched_off_the_callers_thread_and_once(slow: Slow, made: Callable[..., KernelCache]) -> None:
    cache = made()
    first = cache.get(ids()[0])
    assert cache.get(ids()[0]) is first
    assert slow.asked == [ids()[0]]
    assert all(name.startswith("esper-kernels-") for name in slow.threads)


def test_ten_callers_of_one_kernel_wait_for_one_fetch(made: Callable[..., KernelCache]) -> None:
    slow = Slow(gated=True)
    cache = made(slow)
    opener = threading.Timer(0.1, slow.gate.set)
    opener.start()
    found = in_threads(10, lambda: cache.get(ids()[0]))
    opener.join()
    assert slow.asked == [ids()[0]]
    assert len(found) == 10
    assert len(set(map(id, found))) == 1


def test_a_failed_fetch_is_told_to_all_who_wait_and_the_next_one_tries_again(
    made: Callable[..., KernelCache],
) -> None:
    slow = Slow(gated=True)
    cache = made(slow)

    def broken(kernel_id: str) -> None:
        raise OSError(f"no way to {kernel_id}")

    slow.fault = broken
    opener = threading.Timer(0.1, slow.gate.set)
    opener.start()
    found = in_threads(10, lambda: cache.get(ids()[0]))
    opener.join()
    assert [str(one) for one in found] == [f"no way to {ids()[0]}"] * 10
    assert slow.asked == [ids()[0]]
    slow.fault = lambda kernel_id: None
    assert cache.get(ids()[0]).kernel_id == ids()[0]


def test_a_store_that_returns_tampered_bytes_is_refused_and_nothing_of_them_is_kept(
    made: Callable[..., KernelCache],
) -> None:
    wanted = ids()[0]
    store = open_store("memory://")
    store.put(kernels()[wanted])
    shelf = store.shelf  # type: ignore[attr-defined]
    assert isinstance(shelf, MemoryShelf)
    name = f"{wanted[:2]}/{wanted}" if f"{wanted[:2]}/{wanted}" in shelf.names() else wanted
    sound = shelf.get(name)
    assert sound is not None
    shelf.replace(name, sound[:-1] + bytes([sound[-1] ^ 1]))
    cache = made(KernelShelf(store).get)
    with pytest.raises(ArtifactDamaged, match=wanted):
        cache.get(wanted)
    assert wanted not in cache
    assert cache.size_bytes == 0
    with pytest.raises(ArtifactMissing):
        cache.get("0" * 64)
    shelf.replace(name, sound)
    assert cache.get(wanted).kernel_id == wanted


def test_what_somebody_waits_for_does_not_wait_for_a_prefetch(made: Callable[..., KernelCache]) -> None:
    slow = Slow(gated=True)
    held = threading.Event()
    cache = made(slow)

    def fetch_of_the_first_takes_long(kernel_id: str) -> None:
        if kernel_id == ids()[0]:
            assert held.wait(PATIENCE_S)

    slow.fault = fetch_of_the_first_takes_long
    slow.gate.set()
    cache.prefetch(ids()[:3])
    assert slow.started.acquire(timeout=PATIENCE_S)
    assert cache.get(ids()[5]).kernel_id == ids()[5]
    assert slow.asked == [ids()[0], ids()[5]], "a prefetch leaves a thread free"
    held.set()
    settled(cache)
    assert [one in cache for one in ids()[:3]] == [True] * 3


def test_who_wants_a_kernel_that_is_being_prefetched_joins_its_fetch(made: Callable[..., KernelCache]) -> None:
    slow = Slow(gated=True)
    cache = made(slow)
    cache.prefetch(ids()[:1])
    assert slow.started.acquire(timeout=PATIENCE_S)
    opener = threading.Timer(0.05, slow.gate.set)
    opener.start()
    assert cache.get(ids()[0]).kernel_id == ids()[0]
    opener.join()
    assert slow.asked == [ids()[0]]


def test_many_threads_with_a_small_bound_get_what_they_ask_for(slow: Slow, made: Callable[..., KernelCache]) -> None:
    cache = made(max_bytes=bytes_of(*ids()[:3]))

    def wander() -> bool:
        chance = random.Random(threading.get_ident())
        right = True
        for _ in range(60):
            wanted = chance.choice(ids())
            held = chance.random() < 0.3
            if held:
                cache.pin(wanted)
            right = right and cache.get(wanted).kernel_id == wanted
            if held:
                cache.unpin(wanted)
        return right

    assert in_threads(6, wander) == [True] * 6
    settled(cache)
    assert cache.size_bytes <= bytes_of(*ids()[:3])
    assert cache.size_bytes == bytes_of(*[one for one in ids() if one in cache])


# --- the bound


def test_the_kernel_that_was_not_used_for_longest_goes_first(slow: Slow, made: Callable[..., KernelCache]) -> None:
    a, b, c = ids()[:3]
    cache = made(max_bytes=bytes_of(b, c))
    for one in (a, b, a, c):
        cache.get(one)
    assert [one in cache for one in (a, b, c)] == [True, False, True]
    cache.get(b)
    assert slow.asked == [a, b, c, b]


def test_a_kernel_larger_than_the_bound_is_served_and_drives_nothing_out(
    slow: Slow, made: Callable[..., KernelCache]
) -> None:
    small, large = ids()[0], ids()[-1]
    cache = made(max_bytes=bytes_of(small))
    cache.get(small)
    assert cache.get(large).kernel_id == large
    assert (small in cache, large in cache) == (True, False)
    assert cache.size_bytes == bytes_of(small)
    cache.get(large)
    assert slow.asked == [small, large, large]


def test_the_bound_counts_tensors_and_document(slow: Slow, made: Callable[..., KernelCache]) -> None:
    cache = made()
    kernel = cache.get(ids()[0])
    tensors = sum(tensor.nbytes for tensor in kernel.tensors.values())
    assert cache.size_bytes == size_of(kernel) > tensors + 100
    exact = made(max_bytes=size_of(kernel))
    exact.get(ids()[0])
    assert ids()[0] in exact
    short = made(max_bytes=size_of(kernel) - 1)
    short.get(ids()[0])
    assert ids()[0] not in short


def test_a_pinned_kernel_stays_and_goes_after_as_many_unpins(made: Callable[..., KernelCache]) -> None:
    a, b = ids()[:2]
    cache = made(max_bytes=bytes_of(b))
    cache.pin(a)
    cache.pin(a)
    cache.get(a)
    cache.get(b)
    assert (a in cache, b in cache) == (True, False)
    cache.unpin(a)
    cache.get(b)
    assert a in cache
    cache.unpin(a)
    cache.get(b)
    assert (a in cache, b in cache) == (False, True)
    with pytest.raises(GrowthError, match="not pinned"):
        cache.unpin(a)


def test_pinned_kernels_may_pass_the_bound_until_they_are_let_go(made: Callable[..., KernelCache]) -> None:
    large = ids()[-1]
    cache = made(max_bytes=bytes_of(large) - 1)
    cache.pin(large)
    cache.get(large)
    assert large in cache
    cache.unpin(large)
    assert large not in cache
    assert cache.size_bytes == 0


# --- ahead of use


def test_prefetching_fills_free_room_alone_and_keeps_what_was_named_first_longest(
    slow: Slow, made: Callable[..., KernelCache]
) -> None:
    c, a, d, b = ids()[:4]
    cache = made(max_bytes=bytes_of(a, b, c))
    cache.get(c)
    cache.prefetch([a, b, d])
    settled(cache)
    assert [one in cache for one in (a, b, c, d)] == [True, True, True, False]
    cache.get(d)
    assert a in cache
    assert b not in cache, "what was likely least goes first"


def test_a_prefetch_that_fails_is_told_to_whoever_wants_the_kernel_then(made: Callable[..., KernelCache]) -> None:
    slow = Slow()
    cache = made(slow)

    def damaged(kernel_id: str) -> None:
        raise ArtifactDamaged(f"{kernel_id} is damaged")

    slow.fault = damaged
    cache.prefetch(ids()[:2])
    settled(cache)
    assert slow.asked == ids()[:2]
    with pytest.raises(ArtifactDamaged, match=ids()[0]):
        cache.get(ids()[0])


def test_a_cache_without_room_prefetches_nothing(slow: Slow, made: Callable[..., KernelCache]) -> None:
    cache = made(max_bytes=0)
    cache.prefetch(ids())
    settled(cache)
    assert slow.asked == []


def test_a_branch_made_ahead_is_given_once_and_the_next_is_made_when_it_is_asked_for(
    made: Callable[..., KernelCache],
) -> None:
    cache = made(build=load_module)
    kernel = cache.get(ids()[0])
    assert cache.branch(ids()[1]) is None
    given = []
    for _ in range(3):
        cache.prefetch(ids()[:1])
        settled(cache)
        given.append(cache.branch(ids()[0]))
        assert cache.branch(ids()[0]) is None
    assert all(one is not None for one in given)
    assert len(set(map(id, given))) == 3
    pointers = {parameter.data_ptr() for one in given if one is not None for parameter in one.parameters()}
    assert len(pointers) == 3 * len(kernel.tensors), "branches share no weights"
    for name, tensor in given[0].state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, kernel.tensors[name])


def test_branches_count_and_go_before_kernels(made: Callable[..., KernelCache]) -> None:
    a, b = ids()[:2]
    cache = made(build=load_module, max_bytes=bytes_of(a, b))
    tensors = sum(tensor.nbytes for tensor in cache.get(a).tensors.values())
    settled(cache)
    assert cache.size_bytes == bytes_of(a) + tensors
    cache.get(b)
    settled(cache)
    assert cache.branch(a) is None
    assert (a in cache, b in cache, cache.size_bytes) == (True, True, bytes_of(a, b))


def test_a_branch_that_cannot_be_made_leaves_the_kernel_and_the_threads(made: Callable[..., KernelCache]) -> None:
    def refuse(kernel: Kernel) -> torch.nn.Module:
        raise RuntimeError(f"no module of {kernel.kernel_id}")

    cache = made(build=refuse)
    for one in ids()[:3]:
        cache.get(one)
        settled(cache)
        assert cache.branch(one) is None


# --- threads


def test_threads_draw_nothing_from_the_global_generators(made: Callable[..., KernelCache]) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    cache = made(build=load_module)
    cache.prefetch(ids())
    settled(cache)
    assert cache.branch(ids()[0]) is not None
    settled(cache)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_fetch_carries_the_context_of_whoever_asked(made: Callable[..., KernelCache]) -> None:
    slow, run = Slow(), contextvars.ContextVar("run", default="none")
    seen: dict[str, str] = {}
    slow.fault = lambda kernel_id: seen.update({kernel_id: run.get()})
    cache = made(slow)
    for name, one in zip(("first", "second"), ids(), strict=False):
        run.set(name)
        cache.get(one)
    run.set("third")
    cache.prefetch(ids()[2:3])
    settled(cache)
    assert list(seen.values()) == ["first", "second", "third"]


def test_closing_ends_the_threads_and_tells_who_waits() -> None:
    slow = Slow(gated=True)
    cache = KernelCache(slow, max_bytes=1 << 20)
    cache.prefetch(ids()[:4])
    asking = [threading.Thread(target=in_threads, args=(1, lambda one=one: cache.get(one))) for one in ids()[4:6]]
    for thread in asking:
        thread.start()
    for _ in range(2):
        assert slow.started.acquire(timeout=PATIENCE_S)
    opener = threading.Timer(0.1, slow.gate.set)
    opener.start()
    cache.close()
    for thread in [opener, *asking]:
        thread.join(PATIENCE_S)
    assert not [one for one in threading.enumerate() if one.name.startswith("esper-kernels-")]
    assert len(slow.asked) <= 3, "what waited to be fetched was let go"
    assert cache.size_bytes == 0
    with pytest.raises(GrowthError, match="closed"):
        cache.get(ids()[0])
    cache.close()


def test_who_waits_in_the_queue_when_the_cache_closes_is_told() -> None:
    slow = Slow(gated=True)
    cache = KernelCache(slow, max_bytes=1 << 20)
    told: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: told.extend(in_threads(1, lambda: cache.get(one)))) for one in ids()[:5]
    ]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert slow.started.acquire(timeout=PATIENCE_S)
    while len(cache._asked) < 3:
        time.sleep(0.002)
    opener = threading.Timer(0.1, slow.gate.set)
    opener.start()
    cache.close()
    for thread in [opener, *threads]:
        thread.join(PATIENCE_S)
    assert sum(isinstance(one, GrowthError) and "was closed" in str(one) for one in told) == 3
    assert sum(isinstance(one, Kernel) for one in told) == 2


def test_metrics_tell_hits_misses_bytes_and_seconds(made: Callable[..., KernelCache]) -> None:
    def now(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def all_now() -> list[float]:
        return [
            *(now("esper_kernel_cache_requests_total", outcome=one) for one in ("hit", "miss")),
            now("esper_kernel_cache_bytes"),
            now("esper_kernel_cache_evictions_total"),
            now("esper_kernel_fetch_seconds_count", outcome="fetched"),
            now("esper_kernel_fetch_seconds_count", outcome="failed"),
        ]

    before = all_now()
    a, b = ids()[:2]
    cache = made(max_bytes=bytes_of(b))
    for one in (a, a, b):
        cache.get(one)
    with pytest.raises(ArtifactMissing):
        cache.get("f" * 64)
    changes = [after - earlier for earlier, after in zip(before, all_now(), strict=True)]
    assert changes == [1, 3, bytes_of(b), 1, 2, 1]
    cache.close()
    assert now("esper_kernel_cache_bytes") == before[2]
