"""Esper trains networks that grow while they train, and keeps every fact of it in an append-only log.

Public names load on first use, so that the log tools start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.kasmina import attach as attach
    from esper.oona import open_log as open_log
    from esper.tolaria import run as run

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "open_log", "run"]

_LAZY = {"attach": "esper.kasmina", "run": "esper.tolaria", "open_log": "esper.oona"}


def __getattr__(name: str) -> Any:
    """Load a public name from the part that owns it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
