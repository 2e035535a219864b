"""``esper artifact copy``: artifacts and their signatures from one store to another.

Belongs here: which artifacts, progress and the summary. Does not belong here: how one is copied
(``esper.artifacts.copying``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli import output
from esper.cli.options import Json
from esper.cli.progress import Advance, progress
from esper.cli.session import Session, session_of

if TYPE_CHECKING:
    from esper.artifacts import ArtifactStore
    from esper.artifacts.copying import Copied
    from esper.errors import ArtifactError

Digests = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DIGEST]...", help="SHA-256 in hexadecimal, or the beginning; all unless given."),
]


def copy(
    ctx: typer.Context,
    digests: Digests = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Store to copy from; yours unless given.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="Store to copy to; yours unless given.", show_default=False),
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Leave out what no trusted key has signed.")] = False,
    as_json: Json = False,
) -> None:
    """Copy artifacts and their signatures between stores; what is there is skipped, and a cut-off copy goes on.

    What is damaged or has a signature that does not hold is named, not copied, and exits 3. Run it again after a kill
    or an outage: it goes on where it was, within the artifact that was under way too.
    """
    if source is None and target is None:
        raise typer.BadParameter("name the other store with --from URL or --to URL")
    session = session_of(ctx)
    with contextlib.ExitStack() as opened:
        stores = [_store(session, url, opened) for url in (source, target)]
        _copy_all(session, stores[0], stores[1], digests or [], signed=signed, as_json=as_json)


def _copy_all(
    session: Session, source: ArtifactStore, target: ArtifactStore, texts: list[str], *, signed: bool, as_json: bool
) -> None:
    from esper.artifacts.copying import copy as copy_one
    from esper.artifacts.signatures import judge, require_signed
    from esper.cli.artifact import digest_of
    from esper.errors import ArtifactConflict, ArtifactDamaged, ArtifactMissing, SignatureInvalid

    sizes = {one.digest: one.size_bytes for one in source.inventory()}
    chosen = [digest_of(source, text) for text in texts] if texts else list(sizes)
    on_the_way = session.settings.home / "transfer"
    copied: list[Copied] = []
    failed: list[ArtifactError] = []
    with progress("copying artifacts", "bytes") as advance:
        meter = _Meter(advance, sum(sizes.get(digest, 0) for digest in chosen))
        for digest in chosen:
            try:
                judged = judge(source, digest, session.trusted)
                if signed or judged.bad:
                    require_signed(digest, judged)
                copied.append(copy_one(source, target, digest, on_the_way=on_the_way, advance=meter))
            except (ArtifactConflict, ArtifactDamaged, ArtifactMissing, SignatureInvalid) as error:
                # One bad artifact says nothing of the others: all are named before the command fails.
                output.message(error.message)
                error.attributes["digest"] = digest.hex()
                failed.append(error)
            meter.next()
    with contextlib.suppress(OSError):  # it is not there, or another copy is at it
        on_the_way.rmdir()
    output.print_record(
        {
            "from": source.where,
            "to": target.where,
            "copied": sum(one.new for one in copied),
            "bytes": sum(one.size_bytes for one in copied if one.new),
            "there_already": sum(not one.new for one in copied),
            "signatures": sum(one.signatures for one in copied),
            "failed": len(failed),
        },
        as_json=as_json,
    )
    _require_none(failed, len(chosen))


def _require_none(failed: Sequence[ArtifactError], total: int) -> None:
    if failed:
        first = failed[0]
        raise type(first)(
            f"{len(failed)} of {total} artifacts were not copied; the first: {first.message}",
            hint=first.hint,
            digests=[error.attributes["digest"] for error in failed],
        )


class _Meter:
    """Adds the progress of one artifact to that of those before it."""

    def __init__(self, advance: Advance | None, total: int) -> None:
        """Begin at nothing of so many bytes."""
        self._advance = advance
        self._total = total
        self._before = self._now = 0

    def __call__(self, done: int, size: int) -> None:
        """Note how far the artifact that is under way is."""
        del size
        self._now = done
        if self._advance is not None:
            self._advance(self._before + done, self._total)

    def next(self) -> None:
        """Begin the next artifact."""
        self._before += self._now
        self._now = 0


def _store(session: Session, url: str | None, opened: contextlib.ExitStack) -> ArtifactStore:
    from esper.artifacts import open_store

    return session.store if url is None else opened.enter_context(contextlib.closing(open_store(url)))
