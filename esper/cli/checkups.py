"""The single checks of ``esper doctor``: each looks at one thing and says how it is and what mends it.

Belongs here: looking. Nothing is made, written for good or repaired. Does not belong here: how the answers are shown.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from esper.errors import EsperError, NotFound

if TYPE_CHECKING:
    from esper.cli.session import Session

OK, WARN, FAIL = "ok", "warn", "fail"
_OLDEST_PYTHON = (3, 11)
_LITTLE_DISK_BYTES = 1 << 30
_NO_DISK_BYTES = 100 << 20
#: Records at the end of the log whose chain is computed again.
_TAIL = 1000
#: Artifacts that are read and hashed.
_SAMPLE = 32
_TORCH_TIMEOUT_S = 120
_INSTALL_TRAIN = "pip install 'esper[train]'"
#: Run by a new interpreter; prints the threads torch computes with and whether it has CUDA.
TORCH_PROBE = "import torch; print(torch.get_num_threads(), torch.cuda.is_available())"


@dataclass(frozen=True)
class Checkup:
    """What one check found.

    Attributes:
        name: What was looked at.
        status: ok, warn (something is missing or near its limit) or fail (something does not work).
        found: What was seen.
        mend: What to do about it; None where there is nothing to do.
    """

    name: str
    status: str
    found: str
    mend: str | None = None


def checkups(session: Session) -> list[Checkup]:
    """Return the result of every check, in order."""
    looks: tuple[tuple[str, Callable[[Session], Checkup]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("settings", _settings),
        ("home", _home),
        ("disk", _disk),
        ("log", _log),
        ("tables", _tables),
        ("artifacts", _artifacts),
        ("sealing", _sealing),
    )
    return [_looked(name, look, session) for name, look in looks]


def _looked(name: str, look: Callable[[Session], Checkup], session: Session) -> Checkup:
    """Return what a check found; an error of Esper's own is a finding, with its hint as the mend."""
    try:
        return look(session)
    except EsperError as error:
        return Checkup(name, FAIL, f"[{error.code}] {error.message}", error.hint or None)


def _python(session: Session) -> Checkup:
    del session
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Checkup("python", FAIL, version, "make the environment with Python 3.11 or newer")
    return Checkup("python", OK, version)


def _packages(session: Session) -> Checkup:
    del session
    wanted, missing, shown = _base_requirements(), [], []
    for name in wanted:
        try:
            shown.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Checkup("packages", FAIL, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Checkup("packages", OK, ", ".join(shown))


def _base_requirements() -> list[str]:
    """Return the names of the packages that Esper always needs, as its own metadata lists them."""
    try:
        listed = metadata.requires("esper") or []
    except metadata.PackageNotFoundError as error:
        raise NotFound("Esper runs from a folder and is not installed", hint="pip install -e .") from error
    names = [line.partition(";")[0] for line in listed if "extra ==" not in line]
    return [name.strip().split(">")[0].split("=")[0].split("<")[0].strip() for name in names]


def _torch(session: Session) -> Checkup:
    del session
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Checkup("torch", WARN, "not installed: log, tables and audit work, training does not", _INSTALL_TRAIN)
    # In a process of its own: a build that does not suit this machine can end the process it is loaded into.
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and a constant
            [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Checkup("torch", FAIL, f"{version} takes more than {_TORCH_TIMEOUT_S} s to load", _INSTALL_TRAIN)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Checkup("torch", FAIL, f"{version} cannot be loaded: {last}", _INSTALL_TRAIN)
    threads, cuda = done.stdout.split()
    return Checkup("torch", OK, f"{version}, {threads} threads, CUDA {'yes' if cuda == 'True' else 'no'}")


def _settings(session: Session) -> Checkup:
    own = [value for value in session.settings.explain() if value.origin not in ("default", "derived from home")]
    named = ", ".join(f"{value.name} from {value.origin}" for value in own)
    return Checkup("settings", OK, named or "all by default")


def _home(session: Session) -> Checkup:
    home = session.settings.home
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    mend = f"make {place} writable, or set ESPER_HOME to another folder"
    if not place.is_dir():
        return Checkup("home", FAIL, f"{place} is not a folder", mend)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".esper-doctor-"):
            pass
    except OSError as error:
        return Checkup("home", FAIL, f"{place} cannot be written: {error.strerror}", mend)
    return Checkup("home", OK, f"{home} is writable" if place == home else f"{home} can be made")


def _disk(session: Session) -> Checkup:
    home = session.settings.home
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free"
    mend = "free space, or set ESPER_HOME to a folder on another disk"
    if free < _LITTLE_DISK_BYTES:
        return Checkup("disk", FAIL if free < _NO_DISK_BYTES else WARN, found, mend)
    return Checkup("disk", OK, found)


def _log(session: Session) -> Checkup:
    from esper.events.codec import record_of
    from esper.oona.chain import link

    try:
        # Opening already checks that the file is kept durable and ends where it was acknowledged to.
        log = session.log
    except NotFound:
        return Checkup("log", OK, "none yet; `esper demo` makes one")
    # Its end and not its head, whose chain value would be computed first: a log on Redis finds the chain value after
    # the last one it gave by one more record, and those before it by walking anew each time.
    end = log.end()
    first = max(0, end - _TAIL)
    chain = log.chain_at(first)
    for envelope in log.read(first, _TAIL, until=end):
        if chain is None or link(chain, record_of(envelope)) != log.chain_at(envelope.position):
            return Checkup("log", FAIL, f"the chain breaks at position {envelope.position}", "esper log verify")
        chain = log.chain_at(envelope.position)
    return Checkup(
        "log",
        OK,
        f"{end} events, durable, the chain of the last {end - first} holds (`esper log verify` checks all)",
    )


def _tables(session: Session) -> Checkup:
    from esper.projections.open import open_tables
    from esper.projections.runner import Projector

    try:
        log = session.log
        engine = open_tables(session.settings.db, create=False)
    except NotFound:
        return Checkup("tables", OK, "none yet; the first command that reads them builds them")
    try:
        lag = max((table.lag for table in Projector(log, engine).status()), default=0)
    finally:
        engine.dispose()
    found = "up to date" if lag == 0 else f"{lag} events behind; the next command that reads them catches up"
    return Checkup("tables", OK, found)


def _artifacts(session: Session) -> Checkup:
    scheme, _, path = session.settings.artifacts.partition(":///")
    if scheme == "file" and not Path(path).exists():
        return Checkup("artifacts", OK, "none yet")
    if scheme == "file" and not os.access(path, os.W_OK):
        return Checkup("artifacts", FAIL, f"{path} cannot be written", f"make {path} writable")
    digests = list(session.store.digests())
    sample = list(islice(digests, 0, None, max(1, len(digests) // _SAMPLE)))
    for digest in sample:
        session.store.get(digest)
    return Checkup("artifacts", OK, f"{len(digests)} kept; {len(sample)} read, each has its digest")


def _sealing(session: Session) -> Checkup:
    from esper.oona.sealing.sealer import check_same_log

    newest = session.archive.newest()
    if newest is None:
        return Checkup("sealing", OK, "nothing is sealed yet; `esper log seal` seals and signs what the log holds")
    try:
        log = session.log
    except NotFound:
        found = f"{newest.size} events are sealed, but there is no log"
        return Checkup("sealing", WARN, found, "`esper log restore TARGET` makes a log of sealed history")
    check_same_log(log, newest)
    found = f"sealed through {newest.size}, which the log agrees with; {log.end() - newest.size} events since"
    return Checkup("sealing", OK, found)
