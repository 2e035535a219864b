"""Blueprints and kernels: what can be grafted, proved sound before it runs and measured before it is used.

A blueprint is a typed JSON graph. The modules here need no torch: ``ir`` (form), ``ops`` (the operators), ``verify``
(rules), ``cost``, ``canonical`` (hash). Beside them stand ``library`` (what ships), ``kernels`` (blueprints built and
measured), ``forging`` (who asks for a kernel and what came of it, as facts), ``bench`` (the child process in which
work on a stranger's blueprint is done) and ``karn`` (new blueprints from old ones).
"""
