"""Leases: one owner at a time, by a cell, a fencing token and each side's own monotonic clock.

No clock is ever compared with another machine's, and no wall clock is asked. An observer takes a lease over when its
holder's cell did not change for ``ttl_s`` on the observer's clock. A holder stops trusting itself ``ttl_s`` after the
beginning of its last successful renewal on the holder's clock, which is earlier. A holder that was paused between the
check and its next write is refused by the token. Belongs here: one lease. Does not belong here: who should hold which
(``slots``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from esper.clock import steady_s
from esper.errors import LeaseLost
from esper.oona.cells import Cell, Cells


class Lease:
    """A lease on one cell; safe to use from several threads."""

    def __init__(
        self, cells: Cells, name: str, owner: str, *, ttl_s: float, monotonic: Callable[[], float] = steady_s
    ) -> None:
        """Prepare to hold a lease; nothing is asked of the cells yet.

        Args:
            cells: Where the lease lives.
            name: Name of its cell.
            owner: Who wants it: unique to this process and this object, or two of them would be one owner.
            ttl_s: How long it lasts without renewal, the same for everybody who wants it.
            monotonic: Gives seconds that never go back.
        """
        self.name = name
        self.owner = owner
        self.ttl_s = ttl_s
        self._cells = cells
        self._monotonic = monotonic
        self._lock = threading.RLock()
        #: The cell while it is held.
        self._held: Cell | None = None
        self._renewed_at = 0.0
        #: The cell of another owner as it was when it last changed, and when that was noticed.
        self._seen: Cell | None = None
        self._seen_at = 0.0

    @property
    def held(self) -> bool:
        """Tell whether this object holds the lease as far as it knows; it may have expired since."""
        return self._held is not None

    @property
    def valid(self) -> bool:
        """Tell whether nobody else can hold the lease now, by our own clock."""
        return self._held is not None and self._monotonic() - self._renewed_at < self.ttl_s

    @property
    def age_s(self) -> float:
        """Return how long ago the last successful renewal began."""
        return self._monotonic() - self._renewed_at

    @property
    def token(self) -> int:
        """Return the fencing token.

        Raises:
            LeaseLost: The lease is not held.
        """
        return self._cell().token

    @property
    def value(self) -> bytes:
        """Return the value of the cell as of the last acquisition or renewal.

        Raises:
            LeaseLost: The lease is not held.
        """
        return self._cell().value

    def observe(self) -> Cell | None:
        """Look at the lease, so that its expiry is noticed; returns its cell."""
        with self._lock:
            cell = self._cells.look(self.name)
            # Noted after the look, so that a holder's renewal is never counted as older than it is.
            if cell is None or self._seen is None or (cell.token, cell.beat) != (self._seen.token, self._seen.beat):
                self._seen_at = self._monotonic()
            self._seen = cell
            return cell

    @property
    def free(self) -> bool:
        """Tell whether the lease could be had when it was last observed: nobody's, ours from before, or expired."""
        with self._lock:
            cell = self._seen
            if cell is None or cell.owner in ("", self.owner):
                return True
            return self._monotonic() - self._seen_at >= self.ttl_s

    def acquire(self) -> bool:
        """Take the lease if it is free, or if its holder was not seen to renew it for ``ttl_s`` of our clock.

        Returns:
            Whether it is held now.
        """
        with self._lock:
            if self.valid:
                return True
            self._held = None
            began_at = self._monotonic()
            seen = self.observe()
            if not self.free:
                return False
            self._held = self._cells.take(self.name, self.owner, seen=seen)
            self._renewed_at = began_at
            return self._held is not None

    def renew(self, value: bytes | None = None) -> None:
        """Renew the lease, and set the value of its cell.

        Args:
            value: The new value; None leaves it as it is.

        Raises:
            LeaseLost: Another took it, or it was not held.
        """
        with self._lock:
            cell = self._cell()
            began_at = self._monotonic()
            try:
                self._held = self._cells.write(cell, cell.value if value is None else value)
            except LeaseLost:
                self._held = None
                raise
            self._renewed_at = began_at

    def release(self) -> None:
        """Give the lease up, its value kept; nothing happens if it is not held."""
        with self._lock:
            cell, self._held = self._held, None
            if cell is not None:
                self._cells.free(cell)

    def remove(self) -> None:
        """Give the lease up and forget its cell; nothing happens if it is not held."""
        with self._lock:
            cell, self._held = self._held, None
            if cell is not None:
                self._cells.drop(cell)

    def abandon(self) -> None:
        """Forget that the lease is held, without a word to the cells: it is over by our own clock."""
        with self._lock:
            self._held = None

    def _cell(self) -> Cell:
        held = self._held
        if held is None:
            raise LeaseLost(f"{self.owner} does not hold {self.name}", name=self.name, owner="")
        return held
