"""History that somebody altered: found by verification, by an earlier checkpoint, and by proofs that fail."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sealing import archive_at, fill, make_key, sealed_log
from tampering import replace_and_rechain, rewrite

from esper.artifacts.memory import MemoryShelf
from esper.artifacts.objects import NamedObjects
from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.errors import LogDamaged, NotFound, ProofFailed, SignatureInvalid
from esper.events.codec import digest_of, record_of
from esper.events.envelope import Envelope
from esper.oona import MemoryLog, SqliteLog
from esper.oona.sealing.archive import Archive, segment_name
from esper.oona.sealing.checkpoint import sign
from esper.oona.sealing.merkle import Frontier, consistency_proof
from esper.oona.sealing.prove import Consistency, check_proof, prove_consistency, prove_inclusion
from esper.oona.sealing.restore import restore
from esper.oona.sealing.sealcheck import check_agreement, check_sealed
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal
from esper.oona.sealing.segment import build, read_header

SIZES = (300, 700)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SigningKey]:
    """A folder with a log of 700 events, sealed at 300 and 700 in segments of 128, and the key that signed."""
    folder = tmp_path_factory.mktemp("kept")
    key = make_key(tmp_path_factory.mktemp("keys"))
    sealed_log(folder, key, sizes=SIZES, segment_events=128)
    return folder, key


@pytest.fixture
def key(kept: tuple[Path, SigningKey]) -> SigningKey:
    return kept[1]


@pytest.fixture
def path(kept: tuple[Path, SigningKey], tmp_path: Path) -> Path:
    """A copy of the log, to be altered."""
    shutil.copytree(kept[0], tmp_path / "copy")
    return tmp_path / "copy" / "log.db"


@pytest.fixture
def archive(path: Path, key: SigningKey) -> Iterator[Archive]:
    """The archive of that copy."""
    with archive_at(path.parent / "archive", key) as archive:
        yield archive


def segments(path: Path) -> list[Path]:
    return sorted((path.parent / "archive" / "segments").iterdir())


def notes(path: Path) -> list[Path]:
    return sorted((path.parent / "archive" / "checkpoints").iterdir())


# --- the log rewritten, everything in it agreeing with itself


def edited(path: Path) -> None:
    replace_and_rechain(path, 250, b"\x80")


def dropped(path: Path) -> None:
    rewrite(path, lambda records: records[:249] + records[250:])


def dropped_last(path: Path) -> None:
    rewrite(path, lambda records: records[:-1])


def reordered(path: Path) -> None:
    def swap(records: list[Envelope]) -> list[Envelope]:
        return [*records[:249], records[250], records[249], *records[251:]]

    rewrite(path, swap)


def inserted(path: Path) -> None:
    def insert(records: list[Envelope]) -> list[Envelope]:
        moved = records.pop()
        return [*records[:249], moved, *records[249:]]

    rewrite(path, insert)


REWRITES = [(edited, 250), (dropped, 250), (reordered, 250), (inserted, 250), (dropped_last, 700)]


@pytest.mark.parametrize(("harm", "position"), REWRITES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_consistent_rewrite_is_found_against_the_archive(
    path: Path, archive: Archive, key: SigningKey, harm: Callable[[Path], None], position: int
) -> None:
    harm(path)
    with SqliteLog(path) as log:
        log.verify()  # in itself the log is sound
        check_sealed(archive)
        with pytest.raises(ProofFailed) as caught:
            check_agreement(log, ArchiveHistory(archive))
        assert caught.value.attributes["position"] == position
        with pytest.raises(ProofFailed):
            seal(log, archive, key)
    assert archive.sizes() == [*SIZES]


@pytest.mark.parametrize(
    "harm", [edited, dropped, reordered, inserted], ids=lambda harm: getattr(harm, "__name__", "?")
)
def test_a_rewrite_that_is_sealed_anew_fails_against_an_earlier_checkpoint(
    path: Path, archive: Archive, key: SigningKey, harm: Callable[[Path], None]
) -> None:
    """Even with the key: whoever kept a checkpoint of theirs asks for a proof, and there is none."""
    held = archive.note(300).decode()
    harm(path)
    with SqliteLog(path) as log, archive_at(path.parent / "forged", key) as forged:
        seal(log, forged, key, segment_events=128)
        check_sealed(forged)
        history = ArchiveHistory(forged)
        with pytest.raises(NotFound):
            prove_consistency(history, 300, log.end())
        proof = Consistency(
            format=1,
            old=held,
            new=forged.note(log.end()).decode(),
            path=tuple(consistency_proof(300, log.end(), history.node)),
        )
        with pytest.raises(ProofFailed, match="older root"):
            check_proof(proof, [key.public])


def test_a_rewrite_past_the_last_checkpoint_is_not_found(path: Path, archive: Archive, key: SigningKey) -> None:
    """What is not sealed yet has no witness: the sealing lag, which `esper log verify` shows."""
    with SqliteLog(path, clock=ManualClock()) as log:
        fill(log, 20)
    replace_and_rechain(path, 710, b"\x80")
    with SqliteLog(path) as log:
        check_agreement(log, ArchiveHistory(archive))
        assert seal(log, archive, key).events == 20


def test_an_edit_that_is_not_chained_is_not_sealed(path: Path, archive: Archive, key: SigningKey) -> None:
    with SqliteLog(path, clock=ManualClock()) as log:
        fill(log, 20)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE events SET payload = x'80' WHERE position = 710")
    with SqliteLog(path) as log, pytest.raises(LogDamaged) as caught:
        seal(log, archive, key)
    assert caught.value.position == 710
    assert archive.sizes() == [*SIZES]


def test_a_record_whose_digest_was_made_to_fit_is_not_sealed(path: Path, archive: Archive, key: SigningKey) -> None:
    """What was read back is compared with the chain that the log itself keeps."""
    with SqliteLog(path, clock=ManualClock()) as log:
        fill(log, 20)
        (record,) = log.read(709, 1)
    digest = digest_of(record_of(msgspec.structs.replace(record, payload=b"\x80")))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE events SET payload = x'80', digest = ? WHERE position = 710", (digest,))
    with SqliteLog(path) as log, pytest.raises(LogDamaged, match="chain at position"):
        seal(log, archive, key)
    assert archive.sizes() == [*SIZES]


def test_an_older_log_under_a_newer_checkpoint_is_found(path: Path, archive: Archive, key: SigningKey) -> None:
    with SqliteLog(path) as log, MemoryLog() as older:
        older.restore(log.read(0, 500))
        older.verify()
        with pytest.raises(ProofFailed, match="the log ends at 500, but history is sealed through 700"):
            check_agreement(older, ArchiveHistory(archive))
        with pytest.raises(ProofFailed, match="the log ends at 500, but 700 records are sealed"):
            seal(older, archive, key)


# --- the archive altered


def flip(place: int) -> Callable[[Path], None]:
    def harm(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)

    harm.__name__ = f"flip {place}"
    return harm


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_to_its_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def swapped(file: Path) -> None:
    other = sorted(file.parent.iterdir())[-1]
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


HARMS = [
    *(flip(place) for place in (0, 16, 40, 60, 130, 160, 180, 260, 400, 900, -1)),
    cut,
    cut_to_its_header,
    empty,
    swapped,
    Path.unlink,
]


@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_segment_that_was_altered_is_named(
    path: Path, archive: Archive, key: SigningKey, harm: Callable[[Path], None], number: int
) -> None:
    file = segments(path)[number]
    harm(file)
    with pytest.raises(ProofFailed) as caught:
        check_sealed(archive)
    # A missing one is known by its end and digest alone.
    end_and_digest = file.name[17:]
    assert end_and_digest in caught.value.message or harm is swapped
    target = MemoryLog()
    with target, pytest.raises(ProofFailed):
        restore(archive, target, actor="ada", reason="a test", trace_id="0" * 32)
    assert target.end() == 0


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_reader_gets_records_of_an_altered_segment(
    path: Path, archive: Archive, harm: Callable[[Path], None]
) -> None:
    with SqliteLog(path) as log:
        expected = log.read(0, 700)
    harm(segments(path)[2])
    history = ArchiveHistory(archive)
    for after in range(0, 700, 50):
        try:
            assert history.read(after, 50) == expected[after : after + 50]
        except ProofFailed:
            continue
    with pytest.raises(ProofFailed):
        history.read(256, 44)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_segment_that_is_altered_while_it_is_read_from_is_noticed(
    path: Path, archive: Archive, harm: Callable[[Path], None]
) -> None:
    history = ArchiveHistory(archive, kept_bytes=1)
    expected = history.read(300, 10)
    harm(segments(path)[0])
    with pytest.raises(ProofFailed):
        history.read(0, 10)
    if harm is not swapped:
        assert history.read(300, 10) == expected


class ForgetfulObjects(NamedObjects):
    """A store that does not give back what it was given."""

    def get(self, name: str) -> bytes:
        data = super().get(name)
        return data[:-1] + bytes([data[-1] ^ 1]) if name.startswith("segments/") else data


def test_what_an_archive_does_not_give_back_is_not_signed(key: SigningKey) -> None:
    with Archive(ForgetfulObjects(MemoryShelf()), [key.public]) as archive, MemoryLog(ManualClock()) as log:
        fill(log, 50)
        with pytest.raises(ProofFailed, match="not what its header stands for"):
            seal(log, archive, key)
        assert archive.sizes() == []


def test_a_segment_that_does_not_follow_from_its_records_is_not_signed(
    key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the sealer's own: what it wrote is computed anew before it is signed."""

    def faulty(*arguments: Any, **more: Any) -> bytes:
        data = bytearray(build(*arguments, **more))
        data[40] ^= 1  # the time of its first record
        return bytes(data)

    monkeypatch.setattr("esper.oona.sealing.sealer.build", faulty)
    with Archive("memory://", [key.public]) as archive, MemoryLog(ManualClock()) as log:
        fill(log, 50)
        with pytest.raises(ProofFailed, match="its times are not those of its records"):
            seal(log, archive, key)
        assert archive.sizes() == []


def test_segments_of_another_history_do_not_fit(path: Path, archive: Archive, key: SigningKey, tmp_path: Path) -> None:
    """An attacker without the key writes the archive anew; every segment is sound, and no checkpoint is."""
    other = make_key(tmp_path / "other")
    edited(path)
    shutil.rmtree(path.parent / "archive")
    with SqliteLog(path) as log, archive_at(path.parent / "archive", other) as theirs:
        seal(log, theirs, other, segment_events=128)
        check_sealed(theirs)
    with pytest.raises(SignatureInvalid, match="signed by no trusted key"):
        check_sealed(archive)
    with pytest.raises(SignatureInvalid):
        ArchiveHistory(archive).read(0, 1)


def test_segments_put_in_under_a_kept_checkpoint_do_not_fit(
    path: Path, archive: Archive, key: SigningKey, tmp_path: Path
) -> None:
    """The checkpoints stay, the segments are another history's: the names they are looked up by are gone."""
    edited(path)
    with SqliteLog(path) as log, archive_at(path.parent / "forged", key) as forged:
        seal(log, forged, key, segment_events=128)
    for file in segments(path):
        file.unlink()
    for file in (path.parent / "forged" / "segments").iterdir():
        shutil.copy(file, path.parent / "archive" / "segments" / file.name)
    with pytest.raises(ProofFailed, match="missing from the archive"):
        check_sealed(archive)
    # Renamed to what is looked for, they do not have the digest they are known by.
    old = [file.name for file in segments(path)]
    with archive_at(Path(path.parent / "forged"), key) as forged:
        wanted = archive.newest()
        assert wanted is not None
        last = next(file for file in segments(path) if file.name.split("-")[1] == f"{700:016}")
        last.rename(last.with_name(f"{old[-1][:33]}-{wanted.segment.hex()}.seg"))
    with pytest.raises(ProofFailed, match="does not have the digest"):
        check_sealed(archive)


# --- checkpoints altered


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("harm", [flip(3), flip(20), flip(300), flip(-5), cut, empty], ids=lambda harm: harm.__name__)
def test_an_altered_checkpoint_is_refused(
    path: Path, archive: Archive, harm: Callable[[Path], None], number: int
) -> None:
    harm(notes(path)[number])
    with pytest.raises(SignatureInvalid) as caught:
        check_sealed(archive)
    assert notes(path)[number].name in caught.value.message


def test_a_checkpoint_of_another_key_is_refused(path: Path, archive: Archive, key: SigningKey, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    with SqliteLog(path) as log, archive_at(tmp_path / "theirs", other) as theirs:
        seal(log, theirs, other, segment_events=128)
    shutil.copy(tmp_path / "theirs" / "checkpoints" / notes(path)[-1].name, notes(path)[-1])
    with pytest.raises(SignatureInvalid, match="signed by no trusted key"):
        check_sealed(archive)
    with SqliteLog(path) as log, pytest.raises(SignatureInvalid):
        seal(log, archive, key)


def test_a_checkpoint_under_the_name_of_another_size_is_refused(path: Path, archive: Archive) -> None:
    shutil.copy(notes(path)[0], notes(path)[1])
    with pytest.raises(ProofFailed, match="for log main of size 300"):
        check_sealed(archive)


def test_a_checkpoint_of_another_log_is_refused(path: Path, key: SigningKey) -> None:
    place = f"file:///{path.parent / 'archive'}"
    with (
        Archive(place, [key.public], namespace="other") as other,
        pytest.raises(ProofFailed, match="is signed, but for log main") as caught,
    ):
        check_sealed(other)
    assert "archive of another log than other" in caught.value.hint


def test_two_histories_signed_by_the_same_key_are_told(path: Path, archive: Archive, key: SigningKey) -> None:
    """The sealer itself lies: it signs an edited log into the same archive, as if it had only grown."""
    edited(path)
    with SqliteLog(path, clock=ManualClock()) as log, archive_at(path.parent / "forged", key) as forged:
        fill(log, 10)
        seal(log, forged, key, segment_events=128)
    for folder in ("segments", "checkpoints"):
        for file in (path.parent / "forged" / folder).iterdir():
            shutil.copy(file, path.parent / "archive" / folder / file.name)
    with pytest.raises(ProofFailed, match="the checkpoint of size 300 has another root"):
        check_sealed(archive)
    with pytest.raises(ProofFailed):
        prove_consistency(ArchiveHistory(archive), 300, 710)
    known = ArchiveHistory(archive)
    known._checkpoint = archive.checkpoint(700)
    known._headers = []
    with pytest.raises(ProofFailed, match="does not go on from the one of size 700"):
        known.refresh()


@pytest.mark.parametrize("changes", [{"root": b"r" * 32}, {"chain": b"c" * 32}], ids=str)
def test_a_signed_checkpoint_must_follow_from_its_segment(
    path: Path, archive: Archive, key: SigningKey, changes: dict[str, bytes]
) -> None:
    """Not even the key makes a checkpoint say what its segments do not."""
    newest = archive.newest()
    assert newest is not None
    notes(path)[-1].write_bytes(sign(msgspec.structs.replace(newest, **changes), key))
    with pytest.raises(ProofFailed, match="not what follows from it"):
        ArchiveHistory(archive).read(0, 1)
    with pytest.raises(ProofFailed):
        check_sealed(archive)


def test_a_segment_must_follow_from_the_one_before(path: Path, archive: Archive, key: SigningKey) -> None:
    newest = archive.newest()
    assert newest is not None
    *_, before, last = ArchiveHistory(archive).headers()
    for changes in ({"chain_before": b"c" * 32}, {"before": tuple(b"t" * 32 for _ in last.before)}):
        fields = {"chain_before": last.chain_before, "before": last.before, **changes}
        with SqliteLog(path) as log:
            data = build(log.read(last.first - 1, last.count), namespace="main", previous=before.digest, **fields)
        forged = read_header(data, "x")
        archive.objects.put(segment_name(forged), data)
        tree = Frontier(forged.first - 1, forged.before)
        tree.extend(forged.subtrees, forged.count)
        said = msgspec.structs.replace(newest, root=tree.root(), chain=forged.chain_after, segment=forged.digest)
        notes(path)[-1].write_bytes(sign(said, key))
        with pytest.raises(ProofFailed, match="not what follows from it") as caught:
            ArchiveHistory(archive).read(0, 1)
        assert segment_name(before) in caught.value.message


def test_a_dropped_checkpoint_is_missed_by_whoever_has_it(path: Path, archive: Archive) -> None:
    """The archive alone cannot tell that its newest checkpoint is gone; a copy of the note can."""
    notes(path)[-1].unlink()
    assert check_sealed(archive).through == 300
    assert check_sealed(archive).leftovers == 4
    with pytest.raises(NotFound, match="no checkpoint of size 700"):
        prove_consistency(ArchiveHistory(archive), 300, 700)


# --- proofs altered


def test_a_proof_of_another_record_does_not_hold(path: Path, archive: Archive, key: SigningKey) -> None:
    history = ArchiveHistory(archive)
    proof, other = prove_inclusion(history, 5), prove_inclusion(history, 6)
    for changes in (
        {"position": 6},
        {"record": other.record},
        {"record": other.record, "position": 6},
        {"path": other.path},
        {"path": proof.path[:-1]},
        {"checkpoint": archive.note(300).decode()},
    ):
        with pytest.raises(ProofFailed):
            check_proof(msgspec.structs.replace(proof, **changes), [key.public])
    with pytest.raises(SignatureInvalid):
        check_proof(proof, [])
    assert check_proof(other, [key.public]).checkpoint.size == 700
