"""The documentation says what the code does: generated pages are fresh, and commands that are named exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from esper import errors
from esper.cli.hoist import hoist
from esper.cli.main import app
from esper.events import FACT_TYPES
from esper.settings import setting_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["blueprints.md", "cli.md", "errors.md", "events.md", "lifecycle.md", "settings.md"])
def test_generated_page_is_what_the_code_gives(name: str, generator: ModuleType) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == generator.PAGES[name](), "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in setting_names() if f"`ESPER_{name.upper()}`" not in page] == []


def test_every_event_type_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")
    assert [name for name in FACT_TYPES if f"### {name}\n" not in page] == []


def test_every_command_is_documented(generator: ModuleType) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert [path for path, _ in generator.commands() if f"# {path}\n" not in page] == []


def named_commands(text: str) -> list[str]:
    """Return the `esper ...` commands a page names, in code spans and in code blocks."""
    spans = re.findall(r"`(esper [^`\n]+)`", text)
    blocks = re.findall(r"^```(?:sh|text|console|bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [command for command in spans + lines if command.startswith("esper ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for command in named_commands(page.read_text(encoding="utf-8")):
        _, words = hoist(root, shlex.split(command, comments=True)[1:])
        if not words or words[0].startswith("-"):  # e.g. `esper --version`
            continue
        noun = root.get_command(None, words[0])
        assert noun is not None, f"{page.name} names `{command}`"
        verbs = getattr(noun, "commands", None)
        if verbs is not None and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in verbs, f"{page.name} names `{command}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_error_has_a_code_of_its_own() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EsperError)
    ]
    codes = [kind.code for kind in classes]
    assert len(set(codes)) == len(codes)


def test_every_error_stands_in_the_drawn_tree() -> None:
    drawn = (errors.__doc__ or "").split()
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EsperError)
    ]
    assert [kind.__name__ for kind in classes if kind.__name__ not in drawn] == []
