"""Urabrask: the handler that measures every kernel and gives its verdict, apart from whoever compiled it.

Belongs here: when a kernel is measured, and by whom of several members. Does not belong here: measuring and judging
(``esper.blueprints.forging.examiner``), or the child process it is done in (``esper.blueprints.bench.workbench``).
"""

from esper.handlers.urabrask.handler import Urabrask

__all__ = ["Urabrask"]
