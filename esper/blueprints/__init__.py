"""Blueprints and kernels: what can be grafted, proved sound before it runs and measured before it is used.

A blueprint is a typed JSON graph. The parts without torch: ``ir`` (form), ``verify`` (rules), ``cost``, ``canonical``
(hash), ``library`` (what ships). The parts with torch: ``build`` (to a module), ``kernel`` (to bytes), ``crucible``
(measured), ``forge`` (all of it, as facts).
"""
