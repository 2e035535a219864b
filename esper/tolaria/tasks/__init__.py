"""The shipped tasks by name.

Belongs here: the list of names; one module per task beside it. Does not belong here: the protocol and the
search by name (``esper.tolaria.task``) or host networks (``esper.tolaria.hosts``). A task's module is imported
only when it is asked for, because the libraries behind the data are slow to import.
"""

from __future__ import annotations

from typing import Final

#: Entry point of each shipped task by its name.
SHIPPED: Final[dict[str, str]] = {
    "bytelm": "esper.tolaria.tasks.bytelm:Bytelm",
    "digits": "esper.tolaria.tasks.digits:Digits",
    "impaired": "esper.tolaria.tasks.impaired:Impaired",
    "mnist1d": "esper.tolaria.tasks.mnist1d:Mnist1d",
    "mnist1d_mlp": "esper.tolaria.tasks.mnist1d_mlp:Mnist1dMlp",
}
