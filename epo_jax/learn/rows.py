"""Rows of tokens, with other numbers beside each, to arrays of a few shapes: what models with a scalar head and losses of pairs read.

`batch.pad` does this for trajectories and their advantages; here a row may be any stretch of tokens. Shapes: A accumulation, B rows, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Row = Mapping[str, np.ndarray]  # name -> [t]; all of one length


def steps_of(
    rows: Sequence[Row], *, accumulation: int, size: int, lengths: Sequence[int], fill: Mapping[str, float] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays [accumulation, size, T] by name, `accumulation * size` rows a step in the order given, the last step filled up with empty rows.

    T is the smallest of `lengths` that holds the step's longest row, or that row's own length where none does. `fill`: what stands where there is
    no row, 0 where a name is not in it.
    """
    whole = accumulation * size
    for start in range(0, len(rows), whole):
        group = rows[start : start + whole]
        longest = max(len(next(iter(row.values()))) for row in group)
        length = min((each for each in lengths if each >= longest), default=longest)
        step = {name: np.full((whole, length), (fill or {}).get(name, 0), array.dtype) for name, array in group[0].items()}
        for index, row in enumerate(group):
            for name, array in row.items():
                step[name][index, : len(array)] = array
        yield {name: array.reshape(accumulation, size, length) for name, array in step.items()}
