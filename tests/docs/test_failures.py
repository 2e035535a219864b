"""The page of failures: all fifteen cases, and every test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "failures.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_test_that_the_page_of_failures_names_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) >= 25
    for path, test in named:
        source = (ROOT / path).read_text()
        assert not test or re.search(rf"^ *(?:async )?def {test}\(", source, re.MULTILINE), f"{path} has no {test}"


def test_the_page_of_failures_has_all_fifteen_cases() -> None:
    assert re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 16)]
