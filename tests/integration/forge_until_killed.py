"""A process that forges and is killed before its n-th append: ``python forge_until_killed.py LOG STORE N``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from esper.artifacts import open_store
from esper.blueprints.forging.forge import Forge
from esper.blueprints.ir import SiteSignature
from esper.blueprints.library import load_library
from esper.events import Event
from esper.oona import open_log

LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)


def main(log_url: str, store_url: str, appends: int) -> None:
    log: Any = open_log(log_url)
    store = open_store(store_url)
    append, left = log.append, appends

    def append_or_die(batch: Sequence[Event], **where: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(batch, **where)

    log.append = append_or_die
    forge = Forge(log, store, sender_id="doomed", trace_id="a" * 32)
    forge.ensure([LINEAR], [load_library()["affine"]])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
