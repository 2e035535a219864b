"""From a submitted document to validated kernels, every step a fact.

Belongs here: submitting, the forge, jobs and their ids, verdicts and tags. Does not belong here: how a kernel is built
or measured (``kernels``), or the processes that work at it (``esper.handlers``).
"""
