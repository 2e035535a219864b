"""Kernels in memory: fetched on threads of their own, each once, and kept within a bound of bytes.

Belongs here: which kernels are kept, who waits for whom, and fresh branches made ahead of their use. Does not belong
here: where kernels come from and how they are checked, which is what ``fetch`` does, or when a run takes one
(``esper.tolaria.supply``).

* A kernel is fetched once however many callers want it. A failure is told to all who wait for it and is not kept.
* What was not used for longest goes first. A pinned kernel never goes; pinned ones may pass the bound, for who pins
  one holds its memory anyway. A kernel larger than the bound is served and not kept.
* A prefetch takes only room that is free, and what was named first is kept longest.
* Threads draw nothing from global random generators, and carry the context of whoever asked.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from esper.blueprints.canonical import canonical_json
from esper.blueprints.kernels.kernel import Kernel
from esper.errors import GrowthError
from esper.metrics import (
    KERNEL_CACHE_BYTES,
    KERNEL_CACHE_EVICTIONS,
    KERNEL_CACHE_REQUESTS,
    KERNEL_FETCH_SECONDS,
)

#: One thread is always free for what somebody waits for; the others may prefetch.
_THREADS = 2
#: Kernels that may wait to be prefetched; what is named beyond them is fetched when it is wanted.
_MAX_HINTS = 1024
#: Seconds that closing waits for a fetch that is under way; the store's own time limits end it later.
_CLOSE_S = 5.0


@dataclass(eq=False)
class _Entry:
    """A kernel that is kept."""

    kernel: Kernel
    size_bytes: int
    #: A module of the kernel that nobody uses yet, and its bytes.
    branch: nn.Module | None = None
    branch_bytes: int = 0


@dataclass(eq=False)
class _Flight:
    """One fetch, and everybody who waits for it."""

    kernel_id: str
    #: Whether somebody waits for it.
    asked: bool
    #: Whether a thread took it up before anybody waited.
    hinted: bool = False
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    done: threading.Event = field(default_factory=threading.Event)
    kernel: Kernel | None = None
    error: BaseException | None = None


class KernelCache:
    """Serves kernels by id to any number of threads."""

    def __init__(
        self,
        fetch: Callable[[str], Kernel],
        *,
        max_bytes: int,
        build: Callable[[Kernel], nn.Module] | None = None,
    ) -> None:
        """Keep nothing yet; threads start with the first kernel that is wanted.

        Args:
            fetch: Gives a kernel by id, checked; called on this cache's threads.
            max_bytes: Most bytes of tensors, documents and branches to keep.
            build: Makes a fresh branch of a kernel; with it one is made ahead for each kernel that is kept.
        """
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._build = build
        #: Least recently used first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._flights: dict[str, _Flight] = {}
        self._asked: deque[_Flight] = deque()
        self._hints: deque[tuple[str, contextvars.Context]] = deque()
        #: Threads at work, and those of them that nobody waits for.
        self._busy = self._hinted = 0
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    # --- for those who want kernels

    def get(self, kernel_id: str) -> Kernel:
        """Return a kernel, waiting for it where it is not here yet.

        Raises:
            GrowthError: The cache is closed.
            EsperError: What the fetch raised: NotFound, an ArtifactError or a BlueprintError.
        """
        with self._changed:
            self._require_open()
            entry = self._entries.get(kernel_id)
            if entry is not None:
                self._entries.move_to_end(kernel_id)
                KERNEL_CACHE_REQUESTS.labels("hit").inc()
                return entry.kernel
            flight = self._flights.get(kernel_id)
            KERNEL_CACHE_REQUESTS.labels("miss" if flight is None else "joined").inc()
            if flight is None:
                flight = self._flights[kernel_id] = _Flight(kernel_id, asked=True)
                self._asked.append(flight)
                self._wake()
            flight.asked = True
        flight.done.wait()
        if flight.kernel is None:
            raise flight.error or GrowthError(f"kernel {kernel_id} was not fetched")
        return flight.kernel

    def branch(self, kernel_id: str) -> nn.Module | None:
        """Return a fresh branch that was made ahead, for this caller alone; None where there is none.

        The next one is made when the kernel is prefetched again, at a time that suits the caller: two threads share
        one interpreter, so that making it now would slow down what the caller does with this one.
        """
        with self._changed:
            entry = self._entries.get(kernel_id)
            if entry is None or entry.branch is None:
                return None
            branch, entry.branch = entry.branch, None
            self._count(-entry.branch_bytes)
            entry.branch_bytes = 0
            return branch

    def prefetch(self, kernel_ids: Iterable[str]) -> None:
        """Fetch kernels while nobody waits for them, most likely one first, as far as there is room.

        A fetch that fails is forgotten: whoever wants the kernel then is told.
        """
        with self._changed:
            self._require_open()
            if self._max_bytes > 0:
                self._hint(kernel_ids)

    def pin(self, kernel_id: str) -> None:
        """Keep a kernel until as many ``unpin`` follow, from when it is here on."""
        with self._changed:
            self._pins[kernel_id] += 1

    def unpin(self, kernel_id: str) -> None:
        """Take one pin back.

        Raises:
            GrowthError: There is none.
        """
        with self._changed:
            if not self._pins[kernel_id]:
                raise GrowthError(f"kernel {kernel_id} is not pinned")
            self._pins[kernel_id] -= 1
            self._pins += Counter()  # forgets those at 0
            self._make_room()

    def __contains__(self, kernel_id: str) -> bool:
        with self._changed:
            return kernel_id in self._entries

    @property
    def size_bytes(self) -> int:
        """Return the bytes that are kept."""
        with self._changed:
            return self._bytes

    def idle(self) -> bool:
        """Tell whether nothing is fetched or made and nothing waits to be."""
        with self._changed:
            return not (self._asked or self._hints or self._busy)

    def close(self) -> None:
        """Let everything go; who waits is told, and a fetch under way is waited for a little."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for flight in self._asked:
                flight.error = GrowthError(f"kernel {flight.kernel_id} was not fetched: the cache was closed")
                flight.done.set()
            self._asked.clear()
            self._hints.clear()
            self._entries.clear()
            self._count(-self._bytes)
            self._changed.notify_all()
        deadline = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- under the lock

    def _require_open(self) -> None:
        if self._closed:
            raise GrowthError("this cache of kernels is closed", hint="it ends with its run")

    def _hint(self, kernel_ids: Iterable[str]) -> None:
        for kernel_id in kernel_ids:
            if len(self._hints) >= _MAX_HINTS:
                break
            self._hints.append((kernel_id, contextvars.copy_context()))
        self._wake()

    def _wake(self) -> None:
        if not self._threads and not self._closed:
            for number in range(_THREADS):
                thread = threading.Thread(target=self._work, name=f"esper-kernels-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._changed.notify_all()

    def _count(self, change: int) -> None:
        self._bytes += change
        KERNEL_CACHE_BYTES.inc(change)

    def _keep(self, kernel: Kernel, size: int, *, asked: bool) -> bool:
        """Keep a kernel that has arrived, if it may stay, and tell whether it does."""
        name = kernel.kernel_id
        pinned = sum(one.size_bytes for other, one in self._entries.items() if self._pins[other])
        if self._closed:
            return False
        if not self._pins[name]:
            if pinned + size > self._max_bytes:
                return False
            if not asked and self._bytes + size > self._max_bytes:
                self._hints.clear()  # those after it are less likely still
                return False
        self._entries[name] = _Entry(kernel, size)
        # A prefetched kernel goes before those that were used, and before those that were named earlier.
        self._entries.move_to_end(name, last=asked)
        self._count(size)
        self._make_room()
        return True

    def _make_room(self) -> None:
        """Let branches and then kernels go, longest unused first, until the bound holds or what is left is pinned."""
        for entry in self._entries.values():
            if self._bytes <= self._max_bytes:
                return
            self._count(-entry.branch_bytes)
            entry.branch, entry.branch_bytes = None, 0
        for name in [name for name in self._entries if not self._pins[name]]:
            if self._bytes <= self._max_bytes:
                return
            self._count(-self._entries.pop(name).size_bytes)
            KERNEL_CACHE_EVICTIONS.inc()

    # --- the threads

    def _work(self) -> None:
        while (flight := self._next()) is not None:
            flight.context.run(self._bring, flight)
            flight.context.run(self._make_branch, flight)
            with self._changed:
                self._busy -= 1
                self._hinted -= flight.hinted
                self._changed.notify_all()

    def _next(self) -> _Flight | None:
        """Wait for work: what somebody waits for first; a prefetch leaves one thread free. None ends the thread."""
        with self._changed:
            while not self._closed:
                if self._asked:
                    self._busy += 1
                    return self._asked.popleft()
                if self._hints and self._hinted < _THREADS - 1:
                    flight = self._hinted_flight(*self._hints.popleft())
                    if flight is not None:
                        self._busy += 1
                        self._hinted += 1
                        return flight
                    continue
                self._changed.wait()
            return None

    def _hinted_flight(self, kernel_id: str, context: contextvars.Context) -> _Flight | None:
        """Return what is to be done for a hint: a fetch, a branch of a kernel that is here, or nothing."""
        entry = self._entries.get(kernel_id)
        flight = _Flight(kernel_id, asked=False, hinted=True, context=context)
        if entry is not None:
            flight.kernel = entry.kernel
            return flight if self._build is not None and entry.branch is None else None
        if kernel_id in self._flights:
            return None
        self._flights[kernel_id] = flight
        return flight

    def _bring(self, flight: _Flight) -> None:
        """Fetch a kernel and hand it, or what went wrong, to everybody who waits."""
        if flight.kernel is not None:
            return
        began = time.perf_counter()
        kernel: Kernel | None = None
        size = 0
        try:
            kernel = self._fetch(flight.kernel_id)
            size = size_of(kernel)
        except BaseException as error:  # whatever it is, it belongs to those who wait, on their threads
            flight.error = error
        KERNEL_FETCH_SECONDS.labels("failed" if kernel is None else "fetched").observe(time.perf_counter() - began)
        with self._changed:
            self._flights.pop(flight.kernel_id)
            if kernel is not None:
                self._keep(kernel, size, asked=flight.asked)
            flight.kernel = kernel
            flight.done.set()

    def _make_branch(self, flight: _Flight) -> None:
        """Make a branch ahead, where its kernel is kept and there is room for it."""
        if self._build is None or flight.kernel is None:
            return
        size = _tensor_bytes(flight.kernel)
        with self._changed:
            entry = self._entries.get(flight.kernel_id)
            if entry is None or entry.branch is not None or self._bytes + size > self._max_bytes:
                return
        try:
            branch = self._build(flight.kernel)
        except Exception:  # whoever takes the kernel makes the branch then, and is told on their own thread
            return
        with self._changed:
            if self._entries.get(flight.kernel_id) is entry and self._bytes + size <= self._max_bytes:
                entry.branch, entry.branch_bytes = branch, size
                self._count(size)


def size_of(kernel: Kernel) -> int:
    """Return the bytes that a kernel counts for: its tensors and its document."""
    return _tensor_bytes(kernel) + len(canonical_json(kernel.blueprint).encode())


def _tensor_bytes(kernel: Kernel) -> int:
    return sum(tensor.nbytes for tensor in kernel.tensors.values())
