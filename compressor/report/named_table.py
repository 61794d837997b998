"""A table whose first column, of names, is cut to the room that the figures leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from compressor.report.figures import shorten

NARROWEST_NAME = 12
GAP = 2


@dataclass(frozen=True)
class NamedTable:
    """One row a layer, run or budget; figures are never cut, names are shortened in their middle.

    Args:
        columns: Title of each column.
        rows: Cells of each row, the name first. They are shown as they are, markup and all.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table in the width that there is."""
        lines = [self.columns, *self.rows]
        taken = sum(
            GAP + max(cell_len(line[column]) for line in lines)
            for column in range(1, len(self.columns))
        )
        width = max(options.max_width - taken, NARROWEST_NAME)
        names = [row[0] for row in self.rows]
        prefix = common_prefix(names) if max(map(len, names), default=0) > width else ""
        title = f"{self.columns[0]} in {prefix.rstrip('.')}" if prefix else self.columns[0]
        table = plain_table([shorten(title, width), *self.columns[1:]])
        for name, *figures in self.rows:
            table.add_row(Text(shorten(name[len(prefix) :], width)), *map(Text, figures))
        yield table


def common_prefix(names: Sequence[str]) -> str:
    """Return the dotted beginning that all names share, dot included: ``encoder.layer.``."""
    if len(names) < 2:
        return ""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(f"{parts[0]}.")
    return "".join(shared)


def plain_table(columns: Sequence[str]) -> Table:
    """Return an empty table: first column to the left, figures to the right, one rule below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for position, title in enumerate(columns):
        table.add_column(title, justify="right" if position else "left", no_wrap=True)
    return table
