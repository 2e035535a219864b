"""Host networks of the shipped tasks: small on purpose, so that there is room to grow.

Belongs here: plain torch modules that know nothing of growth, tasks or data. Does not belong here: their seeds and
training settings (``esper.tolaria.tasks``).
"""

from __future__ import annotations
