"""Kernels of several sizes, and a shelf that gives them slowly, or not at all, as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache

import msgspec

from esper.artifacts import open_store
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import Kernel, encode_kernel, kernel_id, kernel_seed
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.kasmina.cache import KernelCache

SITE = SiteSignature(kind="linear", rank="NC", channels=12, in_channels=8, positions=(), causal=False)
PATIENCE_S = 30.0


@cache
def kernels() -> dict[str, bytes]:
    """Return the bytes of eight kernels of one blueprint at sites of growing size, smallest first, by id."""
    made = {}
    for channels in range(8, 72, 8):
        site = msgspec.structs.replace(SITE, channels=channels)
        blueprint = load_library()["res_mlp"]
        data = encode_kernel(blueprint, site, build(blueprint, site, seed=kernel_seed(blueprint, site)))
        made[kernel_id(data)] = data
    return made


def ids() -> list[str]:
    return list(kernels())


class Slow:
    """A shelf of kernels that answers when it is told to and counts what it was asked."""

    def __init__(self, *, gated: bool = False) -> None:
        self.store = open_store("memory://")
        for data in kernels().values():
            self.store.put(data)
        self.shelf = KernelShelf(self.store)
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self.fault: Callable[[str], None] = lambda kernel_id: None
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        if not gated:
            self.gate.set()

    def __call__(self, kernel_id: str) -> Kernel:
        self.asked.append(kernel_id)
        self.threads.add(threading.current_thread().name)
        self.started.release()
        assert self.gate.wait(PATIENCE_S)
        self.fault(kernel_id)
        return self.shelf.get(kernel_id)


def settled(cache: KernelCache) -> KernelCache:
    """Wait until a cache has nothing to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not cache.idle():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return cache
