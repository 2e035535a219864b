"""What every adapter of cells must do. A new one passes by subclassing ``CellsContract`` with ``open_cells``."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import pytest

from esper.errors import LeaseLost, SchemaError
from esper.oona.cells import MAX_VALUE_BYTES, Cell, Cells

NAME = "group/urza/slot/0"


def held(cells: Cells, name: str = NAME, owner: str = "ada") -> Cell:
    """Return a cell that was just taken."""
    cell = cells.take(name, owner, seen=cells.look(name))
    assert cell is not None
    return cell


class CellsContract(ABC):
    """The behaviour of ``Cells``, one sentence a test."""

    @abstractmethod
    def open_cells(self) -> Cells:
        """Return new, empty cells."""

    @pytest.fixture
    def cells(self) -> Cells:
        return self.open_cells()

    def test_a_cell_that_was_never_taken_is_not_there(self, cells: Cells) -> None:
        assert cells.look(NAME) is None
        assert cells.names() == []

    def test_the_first_take_makes_a_cell_with_token_one_and_no_value(self, cells: Cells) -> None:
        assert held(cells) == Cell(NAME, "ada", 1, 0, b"")
        assert cells.look(NAME) == Cell(NAME, "ada", 1, 0, b"")

    def test_a_take_of_what_changed_since_it_was_seen_gives_nothing(self, cells: Cells) -> None:
        seen = held(cells)
        cells.write(seen, b"1")
        assert cells.take(NAME, "bob", seen=seen) is None
        assert cells.take(NAME, "bob", seen=None) is None
        assert cells.look(NAME) == Cell(NAME, "ada", 1, 1, b"1")

    def test_a_take_grows_the_token_and_keeps_value_and_beat(self, cells: Cells) -> None:
        cells.write(held(cells), b"\x00\xff")
        assert held(cells, owner="bob") == Cell(NAME, "bob", 2, 1, b"\x00\xff")

    def test_each_write_grows_the_beat(self, cells: Cells) -> None:
        cell = held(cells)
        for beat in (1, 2, 3):
            cell = cells.write(cell, str(beat).encode())
            assert cell == Cell(NAME, "ada", 1, beat, str(beat).encode()) == cells.look(NAME)

    def test_a_write_under_an_older_token_is_refused_and_changes_nothing(self, cells: Cells) -> None:
        late = held(cells)
        now = held(cells, owner="bob")
        with pytest.raises(LeaseLost) as caught:
            cells.write(late, b"late")
        assert (caught.value.name, caught.value.owner) == (NAME, "bob")
        assert cells.look(NAME) == now

    def test_a_write_to_a_cell_that_was_given_up_or_forgotten_is_refused(self, cells: Cells) -> None:
        cell = held(cells)
        cells.free(cell)
        with pytest.raises(LeaseLost):
            cells.write(cell, b"late")
        again = held(cells)
        cells.drop(again)
        with pytest.raises(LeaseLost):
            cells.write(again, b"late")

    def test_a_freed_cell_keeps_its_value_and_its_token(self, cells: Cells) -> None:
        cells.free(cells.write(held(cells), b"value"))
        assert cells.look(NAME) == Cell(NAME, "", 1, 1, b"value")
        assert held(cells, owner="bob") == Cell(NAME, "bob", 2, 1, b"value")

    def test_another_owners_cell_is_neither_freed_nor_dropped(self, cells: Cells) -> None:
        late = held(cells)
        now = held(cells, owner="bob")
        cells.free(late)
        cells.drop(late)
        assert cells.look(NAME) == now

    def test_a_dropped_cell_is_gone(self, cells: Cells) -> None:
        cells.drop(held(cells))
        assert cells.look(NAME) is None
        assert cells.names() == []

    def test_names_come_sorted_and_by_prefix(self, cells: Cells) -> None:
        names = ["group/b", "group/a", "group/ab/slot/10", "group/ab/slot/2", "other", "group/ä"]
        for name in names:
            held(cells, name)
        assert cells.names() == sorted(names)
        assert cells.names("group/a") == ["group/a", "group/ab/slot/10", "group/ab/slot/2"]
        assert cells.names("group/ä") == ["group/ä"]
        assert cells.names("nothing") == []

    def test_values_have_a_bound(self, cells: Cells) -> None:
        cell = cells.write(held(cells), b"x" * MAX_VALUE_BYTES)
        with pytest.raises(SchemaError):
            cells.write(cell, b"x" * (MAX_VALUE_BYTES + 1))
        assert cells.look(NAME) == cell

    def test_of_many_who_take_at_once_one_wins_each_round(self, cells: Cells) -> None:
        rounds, winners = 20, []
        barrier = threading.Barrier(4)

        def race(owner: str) -> None:
            for number in range(rounds):
                barrier.wait()
                seen = cells.look(NAME)
                barrier.wait()
                if cells.take(NAME, owner, seen=seen) is not None:
                    winners.append(number)

        racers = [threading.Thread(target=race, args=(name,)) for name in "abcd"]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert winners == list(range(rounds))
        last = cells.look(NAME)
        assert last is not None
        assert last.token == rounds
