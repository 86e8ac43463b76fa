"""What all processes but the first have in the place of a run's metrics and page: nothing is written."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping


class Unwritten:
    """Takes what `report.metrics.MetricsWriter` and `report.page.run_page.RunPage` take."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def write(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
        pass

    def write_or_say_why_not(self) -> None:
        pass

    def close(self) -> None:
        pass
