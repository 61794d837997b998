"""What the study writes and reads: one JSON line a snapshot, and how it came about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.neural_rank_collapse.measures import MeasuredNetwork, MeasuredWeight
from examples.neural_rank_collapse.training import Cell, Effort, Stage

FILE, VERSIONS = "results.jsonl", "versions.json"


@dataclass(frozen=True)
class Row:
    """One snapshot of one trained network.

    Args:
        data: Name of the images.
        cell: What was trained.
        effort: How long.
        stage: When the snapshot was taken.
        seconds: CPU time from the start of the training, measuring included.
        network: What was measured.
    """

    data: str
    cell: Cell
    effort: Effort
    stage: Stage
    seconds: float
    network: MeasuredNetwork

    @property
    def key(self) -> tuple[str, Cell, Effort]:
        """What a run with the same options would train again."""
        return self.data, self.cell, self.effort


def write(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a file."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_rounded(asdict(row))) + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none if there is no file."""
    if not path.is_file():
        return []
    return [_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _row(given: dict[str, Any]) -> Row:
    network = given.pop("network")
    layers = tuple(
        MeasuredWeight(**{k: tuple(v) if isinstance(v, list) else v for k, v in layer.items()})
        for layer in network.pop("layers")
    )
    network["truncated"] = tuple(network["truncated"])
    cell, effort = Cell(**given.pop("cell")), Effort(**given.pop("effort"))
    return Row(cell=cell, effort=effort, network=MeasuredNetwork(**network, layers=layers), **given)


def _rounded(value: Any) -> Any:
    """Return the same with six digits a number: enough to draw and compare, and half the size."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
