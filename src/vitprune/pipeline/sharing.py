"""Cells done by one process or shared out among several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vitprune.pipeline.cell_folder import CellFolder, CellLike
from vitprune.progress import Progress

POLL_S = 2.0  # between looks at cells that other processes are at
C = TypeVar("C", bound=CellLike)


def share(
    folder: CellFolder,
    cells: Sequence[C],
    do: Callable[[C], None],
    after: Callable[[], object],
    said: Progress,
) -> None:
    """Does all cells that are not finished, but for those that other processes do meanwhile; `after` each of them."""
    known = {cell.key: folder.failure(cell) for cell in cells}
    left, waiting = list(enumerate(cells, 1)), 0
    while left:
        taken: list[tuple[int, C]] = []
        for number, cell in left:
            title = f"cell {number} of {len(cells)}: {cell.name}"
            with folder.lock(cell.key, wait=False) as mine:
                if not mine:
                    taken.append((number, cell))
                elif folder.done(cell):
                    said.line(f"{title}: done before, in {folder.model(cell)}")
                elif folder.failure(cell) != known[cell.key]:
                    said.line(f"{title}: failed meanwhile, in another process")
                else:
                    said.line(title)
                    folder.begin(cell)
                    try:
                        do(cell)
                    except Exception as error:  # whatever it is: the other cells may go well
                        said.done()
                        said.line(f"{cell.name} failed: {folder.fail(cell, error)}")
                    after()
        if taken and len(taken) != waiting:
            waiting = len(taken)
            said.line(f"waiting for {waiting} of {len(cells)} cells, which other processes are at")
        if len(taken) == len(left):
            time.sleep(POLL_S)
        left = taken
