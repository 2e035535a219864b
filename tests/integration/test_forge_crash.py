"""Processes that forge are killed between any two steps: who comes next ends in one kernel and one verdict."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from forge_until_killed import LINEAR

from esper.artifacts import open_store
from esper.blueprints.forging.forge import Forge
from esper.blueprints.library import load_library
from esper.oona import open_log

PROGRAM = Path(__file__).with_name("forge_until_killed.py")


def test_a_forge_that_is_killed_between_any_two_steps_leaves_work_that_another_ends_once(tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path / 'log.db'}", f"file:///{tmp_path / 'store'}"
    # The first dies with the bytes of nothing, the others each one step further: submitted, compiled, judged.
    for appends, known in ((0, 0), (1, 1), (1, 2), (1, 4)):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *where, str(appends)],
            check=False,
            capture_output=True,
            cwd=Path(__file__).parents[2],
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
        with open_log(where[0]) as log:
            assert log.end() == known
    with open_log(where[0]) as log, open_store(where[1]) as store:
        forge = Forge(log, store, sender_id="next", trace_id="b" * 32)
        [ref] = forge.ensure([LINEAR], [load_library()["affine"]])
        assert forge.load(ref.kernel_id)[1].signature == LINEAR
        assert [envelope.type for envelope in log.read()][4:] == ["KernelTagged"]
        forge.measure(ref.kernel_id)
        names = Counter(envelope.type for envelope in log.read())
    assert names["KernelCompiled"] == names["BlueprintSubmitted"] == 1
    assert names["KernelValidated"] == names["KernelCharacterized"] == 2  # the second was asked for
    assert names["MeasurementRequested"] == 1
