"""``esper artifact``: the bulk bytes that facts name by digest, and who vouches for them."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import artifact_copy, artifact_gc, output
from esper.cli.options import Json, Limit, group
from esper.cli.session import session_of

if TYPE_CHECKING:
    from esper.artifacts import ArtifactStore

_DIGITS = 64
_SHOWN = 5
_STDOUT = Path("-")

app = group("List, fetch, store, copy, verify, sign and collect artifacts: weights, kernels, checkpoints.")

Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help="SHA-256 in hexadecimal, or the beginning.", show_default=False)
]
Digests = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DIGEST]...", help="SHA-256 in hexadecimal, or the beginning; all unless given."),
]
Signed = Annotated[bool, typer.Option("--signed", help="Refuse what no trusted key has signed.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    beginning: Annotated[
        str, typer.Argument(metavar="[DIGEST]", help="Only those that begin with these digits.", show_default=False)
    ] = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List artifacts by digest, with size and the keys that signed them; `verify` judges the signatures."""
    store = session_of(ctx).store
    rows = [
        {"digest": digest, "bytes": store.size(digest), "signed_by": sorted(store.signatures(digest))}
        for digest in islice(store.digests(_hexadecimal(beginning)), limit)
    ]
    output.print_rows(rows, ("digest", "bytes", "signed_by"), as_json=as_json, empty="no artifacts")


@app.command("show")
def show(ctx: typer.Context, digest: Digest, as_json: Json = False) -> None:
    """Show an artifact: its size, whether its bytes are sound, and whose signatures hold."""
    from esper.artifacts.signatures import judge

    session = session_of(ctx)
    found = digest_of(session.store, digest)
    data = session.store.get(found)
    judged = judge(session.store, found, session.trusted)
    row = {"digest": found, "bytes": len(data), "sound": True, "signatures": judged._asdict()}
    output.print_record(row, as_json=as_json)


@app.command("get")
def get(
    ctx: typer.Context,
    digest: Digest,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, `-` for stdout.", show_default=False)],
    signed: Signed = False,
) -> None:
    """Write an artifact's bytes, checked against their digest, to a new file. A fetch that was cut off goes on."""
    from esper.artifacts.signatures import judge, require_signed
    from esper.cli.progress import progress

    session = session_of(ctx)
    store = session.store
    found = digest_of(store, digest)
    if signed:
        require_signed(found, judge(store, found, session.trusted))
    if file == _STDOUT:
        sys.stdout.buffer.write(store.get(found))
        return
    if file.exists():
        raise typer.BadParameter(f"{file} is there already; it is left as it is")
    with progress("fetching", "bytes") as advance:
        store.get_file(found, file, advance)


@app.command("put")
def put(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to store.", exists=True, dir_okay=False)],
    as_json: Json = False,
) -> None:
    """Store a file's bytes and print their digest. On a server, one that was cut off goes on."""
    from esper.cli.progress import progress

    store = session_of(ctx).store
    with progress("storing", "bytes") as advance:
        digest = store.put_file(file, advance)
    output.print_record({"digest": digest, "bytes": file.stat().st_size}, as_json=as_json)


@app.command("verify")
def verify(ctx: typer.Context, digests: Digests = None, signed: Signed = False, as_json: Json = False) -> None:
    """Read artifacts and check bytes and signatures. What does not hold is named and exits 3."""
    from esper.artifacts.signatures import Judged, judge, require_signed
    from esper.cli.progress import progress
    from esper.errors import ArtifactDamaged, SignatureInvalid

    session = session_of(ctx)
    store, trusted = session.store, session.trusted
    chosen = [digest_of(session.store, one) for one in digests] if digests else list(store.digests())
    size, vouched, failed = 0, 0, []
    with progress("verifying artifacts", "artifacts") as advance:
        for number, digest in enumerate(chosen, 1):
            try:
                size += len(store.get(digest))
                judged: Judged = judge(store, digest, trusted)
                if judged.bad or signed:
                    require_signed(digest, judged)
                vouched += bool(judged.good)
            except (ArtifactDamaged, SignatureInvalid) as error:
                # One bad artifact says nothing of the others: all are named before the command fails.
                output.message(f"{error.message}")
                failed.append(error)
            if advance is not None:
                advance(number, len(chosen))
    if failed:
        first = failed[0]
        raise type(first)(
            f"{len(failed)} of {len(chosen)} artifacts do not hold; the first: {first.message}",
            hint=first.hint,
            digests=[error.attributes["digest"] for error in failed],
        )
    row = {"verified": True, "artifacts": len(chosen), "bytes": size, "signed_by_trusted_key": vouched}
    output.print_record(row, as_json=as_json)


app.command("copy")(artifact_copy.copy)
app.command("gc")(artifact_gc.gc)


@app.command("sign")
def sign(
    ctx: typer.Context,
    digests: Annotated[
        list[str],
        typer.Argument(metavar="DIGEST...", help="SHA-256 in hexadecimal, or the beginning.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Sign artifacts with your key, after reading and checking them; the signatures are kept beside them."""
    from esper.artifacts.signatures import sign as sign_one
    from esper.artifacts.signing import SigningKey

    session = session_of(ctx)
    key = SigningKey.load(session.settings.signing_key)
    rows: list[dict[str, Any]] = []
    for digest in [digest_of(session.store, one) for one in digests]:
        new = sign_one(session.store, digest, key)
        rows.append({"digest": digest, "key_id": key.public.key_id, "new": new})
    output.print_rows(rows, ("digest", "key_id", "new"), as_json=as_json)


@app.command("key")
def key(
    ctx: typer.Context,
    create: Annotated[
        bool, typer.Option("--create", help="Make the key; one that is there is never replaced.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print your public key, its id and where it lies: what you give to people who are to trust you.

    Commands that sign, such as those that compile kernels, make the key the first time if you did not.
    """
    from esper.artifacts.signing import SigningKey

    path = session_of(ctx).settings.signing_key
    mine = SigningKey.create(path) if create else SigningKey.load(path)
    public = mine.keep_public(path)
    row = {"key_id": mine.public.key_id, "public_key": mine.public.text, "public_file": public, "private_file": path}
    output.print_record(row, as_json=as_json)


def digest_of(store: ArtifactStore, text: str) -> bytes:
    """Return the digest that is meant by its beginning.

    Raises:
        NotFound: No artifact's digest begins so.
        typer.BadParameter: Several do, or it is not hexadecimal.
    """
    from esper.errors import NotFound

    text = _hexadecimal(text)
    found = list(islice(store.digests(text), _SHOWN + 1))
    if len(found) > 1:
        shown = ", ".join(one.hex()[: len(text) + 8] for one in found[:_SHOWN])
        raise typer.BadParameter(f"{text!r} begins several digests: {shown}{', ...' if len(found) > _SHOWN else ''}")
    if not found:
        raise NotFound(f"no artifact {text}", hint="`esper artifact list` shows every artifact", digest=text)
    return found[0]


def _hexadecimal(text: str) -> str:
    text = text.lower()
    if len(text) > _DIGITS or text.strip("0123456789abcdef"):
        raise typer.BadParameter(f"{text!r} is not the beginning of a SHA-256 in hexadecimal")
    return text
