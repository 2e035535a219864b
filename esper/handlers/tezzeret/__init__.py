"""Tezzeret: compiles submitted blueprints into kernels, in any number of workers.

Belongs here: which kernels are wanted, who makes each, and saying so. Does not belong here: compiling
(``esper.blueprints.bench.workbench``), keeping kernels (``esper.blueprints.kernels.shelf``) or measuring them
(``esper.handlers.urabrask``).
"""

from esper.handlers.tezzeret.worker import TezzeretWorker

__all__ = ["TezzeretWorker"]
