"""What holds for every test: a clean environment, one thread, and a time budget per folder, printed at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Esper, Ran
from servers import S3_ENVIRONMENT, S3Server

for _name in [name for name in os.environ if name.upper().startswith(("ESPER_", "AWS_"))]:
    del os.environ[_name]
# No test finds its way to an account of somebody.
os.environ.update(S3_ENVIRONMENT)
# Before torch is imported anywhere: bit-identical sums, and workers that do not fight for cores.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

_TESTS = Path(__file__).parent

#: Seconds of test time a folder may take in all; `make test` is to stay under 25 minutes for the whole product.
BUDGETS_S = {
    "contracts": 300,
    "corpus": 30,
    "docs": 150,
    "golden": 30,
    "integration": 900,
    "property": 300,
    "replay": 240,
    "unit": 540,
    "acceptance": 3000,
}


def _folder(path: Path) -> str:
    return path.relative_to(_TESTS).parts[0] if path.is_relative_to(_TESTS) else "elsewhere"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/acceptance, so that no long show slips into `make test`."""
    for item in items:
        if _folder(item.path) == "acceptance":
            item.add_marker(pytest.mark.acceptance)


class Budgets:
    """Adds up the time of each folder's tests and prints it beside the budget."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        parts = Path(report.nodeid.split("::")[0]).parts
        folder = parts[1] if len(parts) > 2 else "elsewhere"
        self.spent_s[folder] = self.spent_s.get(folder, 0.0) + report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.spent_s:
            return
        terminalreporter.section("time by folder", sep="-")
        for folder, spent_s in sorted(self.spent_s.items()):
            budget_s = BUDGETS_S.get(folder)
            line = f"{folder:<12} {spent_s:8.1f} s"
            if budget_s is not None:
                line += f"  of {budget_s:5d} s"
            over = budget_s is not None and spent_s > budget_s
            terminalreporter.write_line(line + ("  WARNING: over its budget" if over else ""), yellow=over)


def pytest_configure(config: pytest.Config) -> None:
    """Count in the process that reports, which under xdist is the one that is no worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Budgets(), "esper-budgets")


@pytest.fixture
def esper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Esper]:
    """Run the program in this process, with the state folder ``tmp_path/home``."""
    import structlog

    from esper.cli import output
    from esper.cli.main import run

    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))

    def ran(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield ran
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    output.set_color("auto")


@pytest.fixture
def small_home(tmp_path: Path) -> Path:
    """Return the state folder ``tmp_path/home`` with a small log in it: two runs, one with a grafted seed."""
    from small_log import write_small_log

    write_small_log(tmp_path / "home" / "log.db")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    """Start one S3 server for all tests of this process."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server) -> Iterator[S3Server]:
    """Return a server of the S3 protocol that does what it is told; it is sound again after the test."""
    _s3_server.heal()
    yield _s3_server
    _s3_server.up()
    _s3_server.heal()
