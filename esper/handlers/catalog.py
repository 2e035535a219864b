"""The handlers there are: those that ship, by name, and anybody's own by where it is.

Belongs here: what each name stands for, and making it. Does not belong here: running it (``runtime``).
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.errors import ConfigError, DependencyUnavailable, NotFound

if TYPE_CHECKING:
    from esper.artifacts.store import ArtifactStore
    from esper.blueprints.bench.workbench import Limits
    from esper.handlers.runtime.handler import Handler, Service
    from esper.oona.port import EventLog
    from esper.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HANDLER, SERVICE = "handler", "service"


@dataclass(frozen=True)
class Setup:
    """What a shipped handler is made of.

    Attributes:
        log: The log it follows.
        store: The artifact store.
        settings: Where everything else is.
        member: Name of this process among the handler's.
        ttl_s: How long a lease lasts without renewal.
        concurrency: Streams whose events are handled at the same time.
    """

    log: EventLog
    store: ArtifactStore
    settings: Settings
    member: str
    ttl_s: float
    concurrency: int = 1


@dataclass(frozen=True)
class Shipped:
    """One of the handlers that ship with Esper.

    Attributes:
        name: What it is called.
        kind: ``handler``, which reacts to events and can have any number of members at work, or ``service``, of which
            one works and the others stand by.
        what: One line for people.
        make: Makes it.
    """

    name: str
    kind: str
    what: str
    make: Callable[[Setup], Any]


def _projector(setup: Setup) -> Service:
    from esper.handlers.projector import ProjectorService

    return ProjectorService(setup.log, setup.settings.db, member=setup.member, ttl_s=setup.ttl_s)


def _sealer(setup: Setup) -> Service:
    from esper.handlers.sealer import SealerService

    return SealerService(setup.log, setup.settings, member=setup.member, ttl_s=setup.ttl_s)


def _verifier(_: Setup) -> Handler:
    from esper.handlers.blueprint_verifier import BlueprintVerifier

    return BlueprintVerifier()


def _tezzeret(setup: Setup) -> Handler:
    from esper.blueprints.kernels.shelf import KernelShelf
    from esper.handlers.tezzeret.forms import FORMS
    from esper.handlers.tezzeret.handler import Tezzeret

    # Opened here, so that a key that cannot be used is told at the start.
    shelf = KernelShelf.open(setup.store, setup.settings.signing_key, setup.settings.trusted_keys)
    return Tezzeret(
        setup.log,
        lambda _: shelf,
        member=setup.member,
        jobs=setup.concurrency,
        limits=_limits(setup.settings),
        pipelines=FORMS[setup.settings.work_forms],
    )


def _urabrask(setup: Setup) -> Handler:
    from esper.blueprints.kernels.shelf import KernelShelf
    from esper.handlers.urabrask import Urabrask

    shelf = KernelShelf.open(setup.store, setup.settings.signing_key, setup.settings.trusted_keys)
    handler = Urabrask(setup.log, lambda _: shelf, limits=_limits(setup.settings))
    handler.request_outdated()
    return handler


def _limits(settings: Settings) -> Limits:
    """Return what one job in a child process may take."""
    from esper.blueprints.bench.workbench import Limits

    return Limits(wall_s=settings.work_wall_s, memory_bytes=settings.work_memory_bytes)


SHIPPED: dict[str, Shipped] = {
    one.name: one
    for one in (
        Shipped("projector", SERVICE, "Keeps the tables in step with the log.", _projector),
        Shipped("sealer", SERVICE, "Seals history, so that what could be rewritten unnoticed stays bounded.", _sealer),
        Shipped("blueprint-verifier", HANDLER, "Rejects submitted blueprints that break a static rule.", _verifier),
        Shipped("tezzeret", HANDLER, "Compiles submitted blueprints into kernels, in child processes.", _tezzeret),
        Shipped("urabrask", HANDLER, "Measures every kernel in a child process and gives its verdict.", _urabrask),
    )
}


def load_handler(entry: str) -> Handler:
    """Return the handler that an entry point names.

    Args:
        entry: ``package.module:attribute``, where the attribute is an instance or a class whose constructor needs no
            arguments. Modules in the working directory can be named.

    Raises:
        NotFound: There is no such name, module or attribute.
        DependencyUnavailable: The module imports something that is not installed.
        ConfigError: What is there is no handler; the missing part is named.
    """
    module_name, colon, attribute = entry.partition(":")
    if not (colon and module_name and attribute):
        raise NotFound(
            f"no handler is called {entry!r}",
            hint=f"the shipped ones are {', '.join(SHIPPED)}; your own is package.module:attribute",
        )
    with _importable(Path.cwd()):
        found: Any = _import(module_name, entry)
        for part in attribute.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise NotFound(f"{module_name} has no {attribute!r}", hint="check the spelling") from None
        if inspect.isclass(found):
            found = _construct(found, entry)
    return _checked(found, entry)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path for the time of the block."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # The module that was imported may have changed the path itself; take out one entry, wherever it is.
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _import(module_name: str, entry: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise NotFound(
                f"there is no module {module_name!r}, which {entry!r} names",
                hint="run the command in the folder the module is in, or install it",
            ) from None
        raise DependencyUnavailable(f"module {module_name} needs {error.name}, which is not installed") from error
    except Exception as error:
        # Somebody else's code, run for the first time: whatever it raises is told as its own.
        raise ConfigError(f"module {module_name} cannot be imported: {type(error).__name__}: {error}") from error


def _construct(found: Any, entry: str) -> Any:
    try:
        return found()
    except Exception as error:
        # Somebody else's code, as above.
        raise ConfigError(
            f"{entry} cannot be made: {type(error).__name__}: {error}",
            hint="name an instance, or a class whose constructor needs no arguments",
        ) from error


def _checked(found: Any, entry: str) -> Handler:
    name, topics, handle = (getattr(found, part, None) for part in ("name", "topics", "handle"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{entry} has no usable name: {name!r}", hint="letters, digits, dots and dashes, 64 at most")
    if name in SHIPPED:
        raise ConfigError(f"{entry} is called {name!r}, as a shipped handler is", hint="give yours another name")
    topics_fit = not isinstance(topics, str) and isinstance(topics, list | tuple | set | frozenset) and topics
    if not topics_fit or not all(isinstance(topic, str) and topic for topic in topics or ()):
        raise ConfigError(
            f"{entry} has no usable topics: {topics!r}", hint="a tuple of topics, e.g. (TopicNames.TRAINING_RUNS,)"
        )
    try:
        inspect.signature(handle).bind(None, None)  # type: ignore[arg-type]  # None is refused like anything else
    except (TypeError, ValueError):
        raise ConfigError(
            f"{entry} has no `handle(envelope, context)`", hint="docs/how-to/run-handlers.md shows a whole handler"
        ) from None
    handler: Handler = found
    return handler
