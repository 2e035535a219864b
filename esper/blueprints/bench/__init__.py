"""The child process of the workbench: what runs in it, how it is confined, and how it is ended.

Belongs here: both ends of the pipe to one child. Does not belong here: keeping a child warm and handing it work, which
is ``esper.blueprints.bench.workbench``, or what becomes of the results (``esper.blueprints.forging.forge``).
"""
