"""Which logs use a store: a mark in the store for each, so that a collection for one does not rob another.

Belongs here: the marks, ``logs/<id>.json``. Does not belong here: what a log names in the store, or where its id comes
from (``esper.oona.collecting``). A mark is a courtesy between logs: who writes to a store without one is not seen.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from esper.artifacts.shelf import Shelf
from esper.errors import ArtifactDamaged, NotFound
from esper.redact import mask_text

_FOLDER = "logs/"
_NAME = re.compile(r"logs/([0-9a-f]{16})\.json")


class StoreUser(NamedTuple):
    """A log that uses a store."""

    #: 16 hexadecimal digits of the chain value of its first fact: other logs have another first fact.
    log_id: str
    #: Where it was when it began to use the store, without credentials.
    url: str
    namespace: str


def note_user(shelf: Shelf, user: StoreUser) -> bool:
    """Leave a log's mark in a store; tell whether it is new.

    Raises:
        ArtifactError: It cannot be written.
    """
    plain = {"log": mask_text(user.url), "namespace": user.namespace}
    return shelf.put_new(_name(user.log_id), json.dumps(plain, sort_keys=True).encode())


def users_of(shelf: Shelf) -> list[StoreUser]:
    """Return the logs that left a mark, sorted by id.

    Raises:
        ArtifactDamaged: A mark cannot be read.
        ArtifactError: The store cannot be read.
    """
    users = []
    for name in shelf.names(_FOLDER):
        found = _NAME.fullmatch(name)
        data = shelf.get(name) if found else None
        if found is None or data is None:
            continue
        try:
            plain = json.loads(data)
            users.append(StoreUser(found[1], str(plain["log"]), str(plain["namespace"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactDamaged(
                f"{name} in {shelf.where} does not name a log", hint=f"--forget-log {found[1]} removes it", name=name
            ) from error
    return users


def forget_user(shelf: Shelf, log_id: str) -> None:
    """Remove a log's mark from a store.

    Raises:
        NotFound: There is no such mark.
    """
    if not re.fullmatch(r"[0-9a-f]{16}", log_id) or not shelf.delete(_name(log_id)):
        raise NotFound(
            f"no log {log_id[:40]!r} uses the store {shelf.where}", hint="`esper artifact gc --dry-run` names them"
        )


def _name(log_id: str) -> str:
    return f"{_FOLDER}{log_id}.json"
