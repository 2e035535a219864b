"""Kernels: a blueprint built at a site, as a module, as bytes, and as measured.

Belongs here: building, the bytes and where they are kept, compiled forms, and the crucible. Does not belong here: what
a blueprint means (the modules above), or who has a kernel made (``forging``).
"""
