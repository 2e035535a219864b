"""The pages agree with the code: links and anchors lead somewhere, commands parse, examples verify, lists are whole."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import typer.main
from typer.testing import CliRunner

from esper import errors
from esper.blueprints.ir import parse
from esper.blueprints.library import load_library
from esper.blueprints.ops import OPS
from esper.blueprints.rules import RULES
from esper.blueprints.verify import verify
from esper.cli.failures import exit_code
from esper.cli.hoist import hoist
from esper.cli.main import app
from esper.events.decision import Schedule
from esper.names import TopicNames
from esper.oona.port import Head
from esper.oona.sqlite.file import APPLICATION_ID, FORMAT, SCHEMA
from esper.oona.sqlite.headfile import HeadFile
from esper.tamiyo import POLICY_NAMES, GrowthLimits, Reason, settings_type
from esper.tolaria.config import RunConfig
from esper.tolaria.governor import GovernorSettings
from esper.tolaria.schedule import ScheduleSettings
from tests.small_log import NEWER, write_small_log
from tests.tampering import flip_byte_of_loss

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "how-to" / "examples" / "gated_conv_1d.json"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_BLOCK = re.compile(r"^ *```(sh|console|text)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
#: What stands in an example for something the reader puts in, and what a parser can take instead.
_STAND_INS = {"POSITION": "1", "NUMBER": "1"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(*parts: str) -> str:
    return DOCS.joinpath(*parts).read_text(encoding="utf-8")


def example_commands() -> list[tuple[str, str]]:
    """Return every `esper ...` line of a shell block; in console blocks those behind the prompt."""
    found = []
    for page in PAGES:
        for kind, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.splitlines():
                command = line.strip()
                if kind == "console":
                    if not command.startswith("$ "):
                        continue
                    command = command[2:]
                command = re.sub(r"^([A-Z_]+=\S+ )+", "", command)
                if command.startswith("esper "):
                    found.append((name_of(page), command.split(" | ")[0]))
    return found


def parse_command(words: list[str]) -> None:
    """Parse a command line down to its last command, without running any; raises on what does not exist."""
    command: Any = typer.main.get_command(app)
    parent = None
    name = "esper"
    front, rest = hoist(command, words)
    words = [*front, *rest]
    while True:
        context = command.make_context(name, list(words), parent=parent, resilient_parsing=False)
        if not hasattr(command, "list_commands"):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, words = command.resolve_command(context, rest)
        assert command is not None
        parent = context


@pytest.mark.parametrize(("page", "command"), example_commands(), ids=lambda value: value[:60])
def test_example_command_parses(page: str, command: str) -> None:
    words = [_STAND_INS.get(word, word) for word in shlex.split(command, comments=True)[1:] if word != "&"]
    try:
        parse_command(words)
    except typer.Exit as asked:
        if asked.exit_code != 0:  # --help and --version end the program too
            pytest.fail(f"{page}: `{command}` ends with {asked.exit_code}")
    except typer.TyperException as error:
        pytest.fail(f"{page}: `{command}`: {error.format_message()}")


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for words in (["run", "lst"], ["log", "verify", "--no-such"], ["decision", "list", "latest"], ["seed", "show"]):
        with pytest.raises(typer.TyperException):
            parse_command(words)


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets where Markdown is shown."""
    plain = re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_page_stands_in_the_index(page: Path) -> None:
    index = DOCS / "README.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))
    }
    assert page == index or page.resolve() in linked


def test_the_example_blueprint_is_valid_and_is_the_one_on_the_page() -> None:
    blueprint = parse(EXAMPLE.read_bytes())
    assert verify(blueprint).blueprint.id == EXAMPLE.stem
    shown = re.findall(r"^```json\n(.*?)^```$", read("how-to", "write-a-blueprint.md"), re.MULTILINE | re.DOTALL)
    assert [json.loads(block) for block in shown] == [json.loads(EXAMPLE.read_bytes())]


def test_the_example_blueprint_verifies_as_the_page_shows() -> None:
    done = CliRunner().invoke(app, ["blueprint", "verify", str(EXAMPLE)])
    assert done.exit_code == 0, done.output
    page = read("how-to", "write-a-blueprint.md")
    shown = [" ".join(line.split()) for line in page.splitlines()]
    given = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    assert [line for line in given if line not in shown] == []


def test_every_rule_of_a_blueprint_is_named_in_how_to_and_reference() -> None:
    how_to, reference = read("how-to", "write-a-blueprint.md"), read("reference", "blueprints.md")
    assert [rule for rule in RULES if f"`{rule}`" not in how_to or f"| `{rule}` |" not in reference] == []


def test_every_operator_and_shipped_blueprint_is_in_the_reference() -> None:
    page = read("reference", "blueprints.md")
    assert [name for name in (*OPS, *load_library()) if f"| `{name}` |" not in page] == []


def setting_rows(page: str) -> dict[str, str]:
    """Return the default that a page's tables give each setting."""
    return dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]*?) \|", page, re.MULTILINE))


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_policy_and_its_settings_are_documented_with_their_defaults(policy: str) -> None:
    page = read("how-to", "choose-a-policy.md")
    heading, section = next(
        (title, text)
        for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        if policy in title.split(" and ")
    )
    told = setting_rows(section)
    defaults = json.loads(msgspec.json.encode(settings_type(policy)()))
    assert told.keys() == defaults.keys(), heading
    for name, default in defaults.items():
        if name != "blueprint":
            assert json.loads(told[name]) == default, name
    if "blueprint" in defaults:
        assert json.dumps(defaults["blueprint"]) in page


def test_every_reason_for_a_masked_action_is_documented() -> None:
    page = read("how-to", "choose-a-policy.md")
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ("graft", Schedule),
        ("limits", GrowthLimits),
        ("schedule", ScheduleSettings),
        ("governor", GovernorSettings),
    ],
)
def test_every_setting_of_a_run_is_documented_with_its_default(group: str, kind: type[msgspec.Struct]) -> None:
    told = setting_rows(read("how-to", "train-your-task.md"))
    for name, default in msgspec.to_builtins(kind()).items():
        assert told[f"{group}.{name}"].strip("`") == (default if isinstance(default, str) else json.dumps(default))


def test_every_field_of_a_runs_configuration_is_documented() -> None:
    page = read("how-to", "train-your-task.md")
    groups = ("graft", "limits", "schedule", "governor", "policy_settings")
    fields = [name for name in RunConfig.__struct_fields__ if name not in groups]
    assert [name for name in fields if f"`{name}`" not in page] == []
    assert [name for name in groups if f"`{name}." not in page] == []


def test_every_topic_is_documented() -> None:
    page = read("reference", "log-format.md")
    assert [topic.value for topic in TopicNames if f"| `{topic.value}` |" not in page] == []


def test_every_error_code_is_documented_with_its_exit_code() -> None:
    page = read("reference", "errors.md")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EsperError)]
    assert len(kinds) > 30
    assert [
        kind.code for kind in kinds if f"| `{kind.code}` | {kind.__name__} | {exit_code(kind())} |" not in page
    ] == []
    assert "`E-USE-001`" in page


def test_the_documented_schema_is_the_logs() -> None:
    page = read("reference", "log-format.md")
    assert [name for name, statement in SCHEMA.items() if statement not in page] == []
    assert f"`{APPLICATION_ID:#x}`" in page
    assert f"`PRAGMA user_version` is `{FORMAT}`" in page


def documented_program() -> str:
    blocks: list[tuple[str, str]] = _BLOCK.findall(read("reference", "log-format.md"))
    return next(code for _, code in blocks if "import hashlib" in code)


def run_program(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", documented_program()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_documented_program_checks_a_log_and_finds_damage(tmp_path: Path) -> None:
    head = write_small_log(tmp_path / "log.db")
    sound = run_program(tmp_path)
    assert sound.returncode == 0, sound.stderr
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        (chain,) = connection.execute("SELECT chain FROM events WHERE position = ?", (head,)).fetchone()
    assert sound.stdout.split() == [str(head), chain.hex()]
    flip_byte_of_loss(tmp_path / "log.db", NEWER, 2)
    damaged = run_program(tmp_path)
    assert damaged.returncode != 0
    assert "AssertionError" in damaged.stderr


def test_the_head_file_has_the_documented_bytes(tmp_path: Path) -> None:
    file = HeadFile(tmp_path / "log.db.head")
    chain = bytes(range(32))
    file.note(Head(7, chain))
    file.close()
    slot = (tmp_path / "log.db.head").read_bytes()
    assert slot[:8] == b"ESPRHEAD"
    assert int.from_bytes(slot[8:16], "little") == 7
    assert slot[16:48] == chain
    assert int.from_bytes(slot[48:52], "little") == zlib.crc32(slot[:48])
    assert slot[52:] == bytes(12)
