"""The cells in memory keep the contract of cells."""

from __future__ import annotations

from cells_contract import CellsContract

from esper.oona.cells import MemoryCells


class TestMemoryCells(CellsContract):
    def open_cells(self) -> MemoryCells:
        return MemoryCells()
