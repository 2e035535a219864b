"""Ids derived from a cause are the same each time, apart for different causes, and stand together for one run."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.ids import derived_id

words = st.text(alphabet="abc-", max_size=5)
causes = st.lists(st.one_of(words, st.integers()), min_size=1, max_size=4).map(tuple)


@given(causes)
def test_an_id_follows_from_its_cause_alone_and_is_a_uuid(cause: tuple[str | int, ...]) -> None:
    found = derived_id(*cause)
    assert found == derived_id(*cause)
    assert uuid.UUID(bytes=found).variant == uuid.RFC_4122
    assert uuid.UUID(bytes=found).version in (5, 8)


@given(causes, causes)
def test_different_causes_have_different_ids(first: tuple[str | int, ...], second: tuple[str | int, ...]) -> None:
    spelled = ["/".join(map(str, cause)) for cause in (first, second)]
    assert spelled[0] == spelled[1] or derived_id(*first) != derived_id(*second)


def test_the_numbers_of_a_run_give_ids_in_their_order() -> None:
    found = [derived_id("run", "run-1", 1, ordinal) for ordinal in (0, 1, 255, 256, 70_000, 2**48 - 1)]
    assert found == sorted(found)
    assert len({one[:10] for one in found}) == 1
    assert derived_id("run", "run-1", 2, 0)[:10] != found[0][:10] != derived_id("run", "run-2", 1, 0)[:10]


@pytest.mark.parametrize("number", [-1, 2**48, 2**80])
def test_a_number_that_does_not_fit_is_hashed(number: int) -> None:
    assert uuid.UUID(bytes=derived_id("run", number)).version == 5


def test_ids_stay_what_they_are_from_release_to_release() -> None:
    assert derived_id("run", "run-1", 1, 7).hex() == "2a3e355807c7885e96c4000000000007"
    assert derived_id("decision", "run-1", 3, "DecisionMade").hex() == "81a4fba321cf562689215cd0abb17ac5"
