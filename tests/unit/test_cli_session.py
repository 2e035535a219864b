"""What commands share: the key that signs, the shelf of kernels, the mark in the store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from builders import append

from esper.artifacts.users import users_of
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.cli.session import Session
from esper.events.operator import NoteAdded

SITE = SiteSignature(kind="linear", rank="NC", channels=4, in_channels=3, positions=(), causal=False)


def kernel() -> bytes:
    blueprint = load_library()["affine"]
    return encode_kernel(blueprint, SITE, build(blueprint, SITE, seed=kernel_seed(blueprint, SITE)))


def test_the_first_kernel_makes_a_key_and_says_so_and_later_ones_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Session({"home": tmp_path})) as session:
        assert session.trusted == []
        kernel_id = session.shelf.put(kernel())
        assert session.shelf.get(kernel_id).kernel_id == kernel_id
        assert session.trusted == [session.signing_key.public]
        told = capsys.readouterr().err
        assert f"made the signing key {session.settings.signing_key}" in told
        assert "`esper artifact key`" in told
        assert session.settings.signing_key.stat().st_mode & 0o777 == 0o600
    with closing(Session({"home": tmp_path})) as session:
        assert session.shelf.get(kernel_id).kernel_id == kernel_id
        assert KernelShelf(session.store, trusted=session.trusted).has(kernel_id)
        assert capsys.readouterr().err == ""


def test_a_command_that_only_reads_makes_no_key(tmp_path: Path) -> None:
    with closing(Session({"home": tmp_path})) as session:
        assert not KernelShelf(session.store, trusted=session.trusted).has("ab" * 32)
        assert not session.settings.signing_key.exists()


def test_a_log_leaves_its_mark_once_it_has_a_fact(tmp_path: Path) -> None:
    with closing(Session({"home": tmp_path})) as session:
        session.claim_store()
        assert users_of(session.store.shelf) == []
        append(session.new_log, [NoteAdded(run_id="r", actor="ada", text="first")])
        session.claim_store()
        session.claim_store()
        (user,) = users_of(session.store.shelf)
        assert (user.url, user.namespace) == (session.settings.log, "main")
