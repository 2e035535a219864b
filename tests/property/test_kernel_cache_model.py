"""Any sequence of gets, prefetches, pins and unpins leaves in the cache what a plain list of rules would leave."""

from __future__ import annotations

import time

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.kernel import Kernel, Manifest
from esper.blueprints.library import load_library
from esper.errors import ArtifactMissing
from esper.kasmina.cache import KernelCache, size_of

SITE = SiteSignature(kind="linear", rank="NC", channels=8, in_channels=8, positions=(), causal=False)
NOOP = load_library()["noop"]
NAMES = "abcdefg"
WANTED = st.sampled_from(NAMES)
CALM = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def kernel(name: str) -> Kernel:
    """Return a kernel of some size: ``a`` is the smallest."""
    return Kernel(
        kernel_id=name,
        manifest=Manifest(format=1, blueprint_id="", name=name, kind="residual", parameters=0, flops=0),
        blueprint=NOOP,
        signature=SITE,
        symbols={},
        tensors={"n0.weight": torch.zeros((ord(name) - ord("a")) * 256)},
    )


SIZES = {name: size_of(kernel(name)) for name in NAMES}


class CacheMachine(RuleBasedStateMachine):
    """Drives a cache and the rules side by side."""

    @initialize(bound=st.integers(0, sum(SIZES.values()) + 1))
    def begin(self, bound: int) -> None:
        self.bound = bound
        self.fetched: list[str] = []
        self.away: set[str] = set()
        self.cache = KernelCache(self.fetch, max_bytes=bound)
        #: Names that are kept, first to go first, and pins.
        self.kept: list[str] = []
        self.pins: dict[str, int] = {}
        self.expected: list[str] = []

    def fetch(self, name: str) -> Kernel:
        self.fetched.append(name)
        if name in self.away:
            raise ArtifactMissing(name)
        return kernel(name)

    def bytes(self) -> int:
        return sum(SIZES[one] for one in self.kept)

    def make_room(self) -> None:
        while self.bytes() > self.bound and any(not self.pins.get(one) for one in self.kept):
            self.kept.remove(next(one for one in self.kept if not self.pins.get(one)))

    def fits_beside_pins(self, name: str) -> bool:
        return sum(SIZES[one] for one in self.kept if self.pins.get(one)) + SIZES[name] <= self.bound

    @rule(name=WANTED, away=st.booleans())
    def get(self, name: str, away: bool) -> None:
        self.away = {name} if away else set()
        try:
            found = self.cache.get(name)
        except ArtifactMissing:
            assert away
            assert name not in self.kept
            self.expected.append(name)
            return
        assert found.kernel_id == name
        if name in self.kept:
            self.kept.remove(name)
            self.kept.append(name)
            return
        assert not away
        self.expected.append(name)
        if self.pins.get(name) or self.fits_beside_pins(name):
            self.kept.append(name)
            self.make_room()

    @rule(names=st.lists(WANTED, max_size=4))
    def prefetch(self, names: list[str]) -> None:
        self.away = set()
        self.cache.prefetch(names)
        deadline = time.monotonic() + 30
        while not self.cache.idle():
            assert time.monotonic() < deadline
            time.sleep(0.0002)
        for name in names if self.bound else []:
            if name in self.kept:
                continue
            self.expected.append(name)
            if self.pins.get(name):
                self.kept.insert(0, name)
                self.make_room()
            elif self.fits_beside_pins(name):
                if self.bytes() + SIZES[name] > self.bound:
                    break
                self.kept.insert(0, name)

    @rule(name=WANTED)
    def pin(self, name: str) -> None:
        self.cache.pin(name)
        self.pins[name] = self.pins.get(name, 0) + 1

    @rule(name=WANTED)
    def unpin(self, name: str) -> None:
        if self.pins.get(name):
            self.cache.unpin(name)
            self.pins[name] -= 1
            self.make_room()

    @invariant()
    def agrees(self) -> None:
        assert [name for name in NAMES if name in self.cache] == sorted(self.kept)
        assert self.cache.size_bytes == self.bytes()
        assert self.fetched == self.expected
        if not any(self.pins.values()):
            assert self.cache.size_bytes <= self.bound

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()


def test_the_cache_keeps_what_the_rules_keep() -> None:
    run_state_machine_as_test(CacheMachine, settings=CALM)
