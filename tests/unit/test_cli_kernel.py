"""``esper kernel measure`` and ``verify``, on kernels that were really made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_support import Esper

from esper.artifacts import LocalStore
from esper.blueprints.bench.workbench import Workbench, shared_bench
from esper.blueprints.forging.forge import Forge
from esper.blueprints.ir import SiteSignature
from esper.blueprints.library import load_library
from esper.events import Event, fact_of
from esper.events.kernel import KernelCharacterized, KernelCompiled, KernelRejected, KernelValidated
from esper.ids import new_event_id
from esper.oona import ANY, EventLog, open_log

LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=16, positions=(), causal=False)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """Return the bench of this process, which the commands use too: one child for all."""
    return shared_bench()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bench: Workbench) -> Path:
    """Return a state folder with two validated kernels, for all tests of this module."""
    folder = tmp_path_factory.mktemp("made")
    library = load_library()
    with_log(folder, lambda log: forge(folder, log, bench).ensure([LINEAR], [library["lora"], library["affine"]]))
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that state folder as the program's own."""
    return Path(shutil.copytree(made, tmp_path / "home"))


def forge(folder: Path, log: EventLog, bench: Workbench) -> Forge:
    return Forge(log, LocalStore(folder / "artifacts"), sender_id="tolaria", trace_id="ab" * 16, bench=bench)


def with_log(folder: Path, act: Any) -> Any:
    log = open_log(f"sqlite:///{folder / 'log.db'}")
    try:
        return act(log)
    finally:
        log.close()


def append(folder: Path, *facts: Any) -> None:
    def write(log: EventLog) -> None:
        for fact in facts:
            event = Event(fact=fact, event_id=new_event_id(), sender_id="t", trace_id="ab" * 16)
            log.append([event], stream=fact.stream, expected=ANY)

    with_log(folder, write)


def last(folder: Path, kind: type, kernel_id: str) -> Any:
    found = with_log(folder, lambda log: [fact_of(envelope) for envelope in log.read(0, 10_000)])
    return [fact for fact in found if isinstance(fact, kind) and fact.kernel_id == kernel_id][-1]


def stored(folder: Path, digest: str | bytes) -> Path:
    name = digest.hex() if isinstance(digest, bytes) else digest
    files = (path for path in (folder / "artifacts").rglob("*") if path.is_file())
    (found,) = [path for path in files if "".join(path.parts).endswith(name)]
    return found


def ids(esper: Esper) -> dict[str, str]:
    return {row["name"]: row["kernel_id"] for row in esper("kernel", "list", "--json").json}


def test_kernels_that_hold_are_verified(esper: Esper, home: Path) -> None:
    told = esper("kernel", "verify", "--json").json
    assert told == {"verified": True, "kernels": 2, "validated": 2}
    assert esper("kernel", "verify", ids(esper)["lora"][:10], "--json").json["kernels"] == 1
    assert esper("kernel", "verify", "beef").code == 4


def test_a_changed_byte_is_named_and_exits_3(esper: Esper, home: Path) -> None:
    kernel = ids(esper)["lora"]
    path = stored(home, kernel)
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the lowest bit of a weight: it is a kernel still
    path.chmod(0o644)
    path.write_bytes(data)
    ran = esper("kernel", "verify", "--json")
    assert ran.code == 3
    assert kernel[:12] in ran.err
    error = json.loads(ran.err.splitlines()[-1])["error"]
    assert (error["details"]["kernels"], error["details"]["quarantined"]) == ([kernel], [])


def test_what_does_not_hold_is_quarantined_on_request_and_made_again(
    esper: Esper, home: Path, bench: Workbench
) -> None:
    kernel = ids(esper)["lora"]
    path = stored(home, kernel)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    ran = esper("kernel", "verify", "--quarantine", "--by", "ada", "--json")
    assert ran.code == 3
    assert json.loads(ran.err.splitlines()[-1])["error"]["details"]["quarantined"] == [kernel]
    shown = esper("kernel", "show", kernel, "--json").json
    assert (shown["status"], shown["quarantined"]["reason"]) == ("pending_benchmarking", "damaged")
    assert shown["quarantined"]["found_by"] == "operator:ada"
    with_log(home, lambda log: forge(home, log, bench).ensure([LINEAR], [load_library()["lora"]]))
    assert esper("kernel", "verify", "--json").json["validated"] == 2


def test_a_kernel_that_is_gone_does_not_hold(esper: Esper, home: Path) -> None:
    stored(home, ids(esper)["lora"]).unlink()
    ran = esper("kernel", "verify")
    assert ran.code == 3
    assert "1 of 2 kernels do not hold" in ran.err


def test_a_verdict_whose_measurements_are_gone_or_changed_does_not_hold(esper: Esper, home: Path) -> None:
    kernel = ids(esper)["affine"]
    digest = last(home, KernelValidated, kernel).measurements_digest
    path = stored(home, digest)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data + b" ")
    assert esper("kernel", "verify", kernel).code == 3
    path.unlink()
    assert esper("kernel", "verify", kernel).code == 3
    path.write_bytes(data)
    assert esper("kernel", "verify", kernel).code == 0


def test_a_verdict_that_points_to_other_measurements_than_the_log_tells_does_not_hold(esper: Esper, home: Path) -> None:
    kernels = ids(esper)
    mine = last(home, KernelCharacterized, kernels["lora"])
    store = LocalStore(home / "artifacts")
    raw = json.loads(store.get(mine.measurements_digest))
    raw["numbers"]["jump_adam"] /= 2
    for other in (
        store.put(json.dumps(raw).encode()),
        last(home, KernelValidated, kernels["affine"]).measurements_digest,
    ):
        append(
            home, KernelValidated(blueprint_id=mine.blueprint_id, kernel_id=mine.kernel_id, measurements_digest=other)
        )
        ran = esper("kernel", "verify")
        assert ran.code == 3
        assert "is validated, but" in ran.err


def test_a_kernel_validated_against_its_measurements_does_not_hold(esper: Esper, home: Path) -> None:
    mine = last(home, KernelCharacterized, ids(esper)["lora"])
    raw = json.loads(LocalStore(home / "artifacts").get(mine.measurements_digest))
    raw["checks"]["jump_adam"] = False
    digest = LocalStore(home / "artifacts").put(json.dumps(raw).encode())
    names = {"blueprint_id": mine.blueprint_id, "kernel_id": mine.kernel_id}
    append(
        home,
        KernelCharacterized(
            **names,
            checks=raw["checks"],
            numbers=mine.numbers,
            measurements_digest=digest,
            latency_p50_s=None,
            latency_p99_s=None,
            measured_seconds=0.0,
        ),
        KernelValidated(**names, measurements_digest=digest),
    )
    ran = esper("kernel", "verify")
    assert ran.code == 3
    assert "the stored measurements fail jump_adam" in ran.err
    append(home, KernelRejected(**names, measurements_digest=digest, failed=["jump_adam"]))
    assert esper("kernel", "verify", "--json").json == {"verified": True, "kernels": 2, "rejected": 1, "validated": 1}


def test_a_fact_that_states_other_costs_than_the_kernel_has_does_not_hold(esper: Esper, home: Path) -> None:
    compiled = last(home, KernelCompiled, ids(esper)["lora"])
    changed = {name: getattr(compiled, name) for name in compiled.__struct_fields__} | {"parameters": 1}
    append(home, KernelCompiled(**changed))
    ran = esper("kernel", "verify")
    assert ran.code == 3
    assert "the log says parameters 1, the kernel" in ran.err


def test_signatures_are_asked_for_on_request(esper: Esper, home: Path) -> None:
    kernel = ids(esper)["lora"]
    assert esper("kernel", "verify", kernel).code == 0
    ran = esper("kernel", "verify", kernel, "--signed")
    assert (ran.code, "is not signed" in ran.err) == (3, True)
    esper("artifact", "key", "--create")
    assert esper("artifact", "sign", kernel).code == 0
    assert esper("kernel", "verify", kernel, "--signed").code == 0


def test_a_kernel_is_measured_again_and_judged_anew(esper: Esper, home: Path) -> None:
    kernel = ids(esper)["affine"]
    esper("artifact", "key", "--create")
    esper("artifact", "sign", kernel)
    before = last(home, KernelValidated, kernel)
    (row,) = esper("kernel", "measure", kernel, "--json").json
    assert (row["status"], row["noted"], row["failed"]) == ("validated", True, [])
    assert row["latency_p50_s"] > 0
    after = last(home, KernelValidated, kernel)
    assert after.measurements_digest.hex() == row["measurements_digest"]
    assert after.measurements_digest != before.measurements_digest
    assert esper("kernel", "verify", "--json").json["validated"] == 2


def test_where_nothing_is_stale_nothing_is_measured(esper: Esper, home: Path) -> None:
    ran = esper("kernel", "measure", "--stale")
    assert (ran.code, "every kernel was measured" in ran.err) == (0, True)
    assert esper("kernel", "measure").code == 2


def test_what_was_measured_with_another_toolchain_is_stale_and_measured_again(esper: Esper, home: Path) -> None:
    mine = last(home, KernelCharacterized, ids(esper)["affine"])
    older = {name: getattr(mine, name) for name in mine.__struct_fields__} | {"toolchain": "torch 1.0"}
    append(home, KernelCharacterized(**older))
    (row,) = esper("kernel", "measure", "--stale", "--request", "--by", "ada", "--json").json
    assert (row["name"], row["reason"], row["new"]) == ("affine", "another toolchain", True)
    assert esper("kernel", "measure", "--stale", "--request", "--by", "bob", "--json").json[0]["new"] is False
    shown = esper("kernel", "show", row["kernel_id"], "--json").json
    assert shown["measurement_wanted"] == "another toolchain"


def test_a_bad_kernel_is_not_measured_and_the_others_are(esper: Esper, home: Path) -> None:
    kernels = ids(esper)
    esper("artifact", "key", "--create")
    for kernel in kernels.values():
        esper("artifact", "sign", kernel)
    stored(home, kernels["affine"]).unlink()
    ran = esper("kernel", "measure", *kernels.values(), "--json")
    assert ran.code != 0
    rows = {row["name"]: row["status"] for row in json.loads(ran.out)}
    assert rows == {"affine": "unmeasured", "lora": "validated"}


def test_kernels_are_chosen_by_site_status_and_tag(esper: Esper, home: Path) -> None:
    def names(*options: str) -> set[str]:
        return {row["name"] for row in esper("kernel", "list", *options, "--json").json}

    assert names("--site", "linear", "--status", "validated") == {"lora", "affine"}
    assert names("--site", "conv2d") == set()
    tags = {row["name"]: row["tags"] for row in esper("kernel", "list", "--json").json}
    assert all(tags.values())
    for name, carried in tags.items():
        assert name in names("--tag", carried[0])
    assert names("--tag", "no_such_tag") == set()
    assert esper("kernel", "list", "--status", "gone").code == 2
    assert esper("kernel", "list", "--site", "moon").code == 2


def test_a_kernel_is_shown_with_checks_numbers_and_tags(esper: Esper, home: Path) -> None:
    kernel = ids(esper)["lora"]
    text = esper("kernel", "show", kernel).out
    assert "birth_identity\tyes" in text
    assert "tag\tcarried\tthreshold" in text
