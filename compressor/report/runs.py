"""Several compressions side by side: read from their report.json, as a table and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.text import Text

from compressor.errors import CheckpointError, UsageError
from compressor.paths import refusal, state
from compressor.report.classes import interval_text
from compressor.report.figures import MISSING, count, nats, percent, points, shorten, size
from compressor.report.named_table import NamedTable
from compressor.report.pages import fill
from compressor.report.verdict import verdict
from compressor.schema import REPORT_FILE, REPORT_VERSION, Report, Strict


class ComparedRun(Strict):
    """One run of a comparison: its directory as named, and its report.json."""

    directory: str
    report: Report


class ComparedRuns(Strict):
    """What `report` prints.

    Args:
        runs: In the order in which they were named.
        notes: Where the runs cannot be compared: other test samples, another dense model.
    """

    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A figure of one run, and its interval where it has one."""

    text: str
    interval: str = ""


def read_report(directory: Path) -> Report:
    """Read the report.json of a directory, or the file itself.

    Raises:
        UsageError: If there is none.
        CheckpointError: If this user may not read it, or it does not follow the schema; the message
            names the key.
    """
    path = directory / REPORT_FILE if directory.is_dir() else directory
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        if isinstance(error, PermissionError) or path.is_file():
            raise CheckpointError(f"Cannot read the report {path}: {refusal(error)}") from error
        raise UsageError(
            f"No report at {path}: it {state(path)}. Name directories that `compressor compress` "
            "wrote."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no report: {error}. Name directories that `compressor compress` wrote."
        ) from error
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the whole file"
        raise CheckpointError(
            f"{path} is no report of version {REPORT_VERSION} that this release can read: {key}: "
            f"{problem['msg']}. A newer release of compressor may have written it."
        ) from error


def compare_runs(directories: Sequence[Path]) -> ComparedRuns:
    """Read several runs and say what stands between comparing them.

    Raises:
        UsageError: If a directory holds no report.json.
        CheckpointError: If one cannot be read.
    """
    runs = [ComparedRun(directory=str(path), report=read_report(path)) for path in directories]
    reports = [run.report for run in runs]
    notes = []
    if len({report.data.test.sha256 for report in reports}) > 1:
        notes.append("The runs were tested on different samples: accuracies do not compare.")
    if len({(report.model_sha256, report.dense.parameters) for report in reports}) > 1:
        notes.append("The runs began from different dense models.")
    return ComparedRuns(runs=tuple(runs), notes=tuple(notes))


def run_titles(compared: ComparedRuns) -> list[str]:
    """Return what to call each run: its directory, without the directories that all lie in."""
    paths = [Path(run.directory) for run in compared.runs]
    parents = [path.parent.parts for path in paths]
    shared = 0
    while len(paths) > 1 and len({parent[: shared + 1] for parent in parents}) == 1:
        if shared == min(map(len, parents)):
            break
        shared += 1
    return [str(Path(*path.parts[shared:])) for path in paths]


def view_runs(compared: ComparedRuns) -> RenderableType:
    """Return what `report` shows of several runs: one line a run, which fits 80 columns."""
    rows = []
    for title, run in zip(run_titles(compared), compared.runs, strict=True):
        report = run.report
        dense, small = report.dense, report.compressed
        rows.append(
            (
                title,
                shorten(report.method, 10),
                percent(small.parameters / max(dense.parameters, 1)),
                percent(small.flops / max(dense.flops, 1)),
                size(small.bytes),
                percent(small.accuracy),
                _change(report),
                nats(small.kl_to_dense),
            )
        )
    columns = ("run", "method", "params", "FLOPs", "size", "accuracy", "points", "KL")
    table = NamedTable(columns, rows)
    return Group(table, *(Text(f"note: {note}") for note in compared.notes))


def runs_page(compared: ComparedRuns) -> str:
    """Return a page with the runs in columns."""
    return fill(
        "runs.html",
        runs=compared.runs,
        titles=run_titles(compared),
        notes=compared.notes,
        rows=_rows([run.report for run in compared.runs]),
        grades=[verdict(run.report) for run in compared.runs],
    )


def _rows(reports: Sequence[Report]) -> list[tuple[str, list[Cell]]]:
    samples = [report.data.test.samples for report in reports]
    small = [report.compressed for report in reports]

    def plain(texts: Sequence[str]) -> list[Cell]:
        return [Cell(text) for text in texts]

    return [
        ("model", plain([report.model for report in reports])),
        ("method", plain([report.method for report in reports])),
        ("budget", plain([", ".join(report.budget) or "from a plan" for report in reports])),
        ("seed", plain([str(report.seed) for report in reports])),
        (
            "accuracy, dense",
            [
                Cell(percent(r.dense.accuracy, 2), interval_text(r.dense.accuracy, n))
                for r, n in zip(reports, samples, strict=True)
            ],
        ),
        (
            "accuracy",
            [
                Cell(percent(figures.accuracy, 2), interval_text(figures.accuracy, n))
                for figures, n in zip(small, samples, strict=True)
            ],
        ),
        ("change, points", plain([_change(report) for report in reports])),
        ("same prediction", plain([percent(figures.agreement, 2) for figures in small])),
        ("KL from dense, nats", plain([nats(figures.kl_to_dense) for figures in small])),
        ("parameters", plain([count(figures.parameters) for figures in small])),
        (
            "of dense",
            plain([percent(r.compressed.parameters / max(r.dense.parameters, 1)) for r in reports]),
        ),
        ("bytes on disk", plain([size(figures.bytes) for figures in small])),
        ("FLOPs a sample", plain([count(figures.flops) for figures in small])),
        (
            "FLOPs of dense",
            plain([percent(r.compressed.flops / max(r.dense.flops, 1)) for r in reports]),
        ),
        *_times(reports),
    ]


def _times(reports: Sequence[Report]) -> list[tuple[str, list[Cell]]]:
    """Return a row for each batch size that any run was timed at."""
    shares = [
        {} if r.speed is None else {t.batch: t.compressed / t.dense for t in r.speed.batches}
        for r in reports
    ]
    return [
        (
            f"time of dense, batch {batch}",
            [Cell(percent(share[batch]) if batch in share else MISSING) for share in shares],
        )
        for batch in sorted({batch for share in shares for batch in share})
    ]


def _change(report: Report) -> str:
    dense, small = report.dense.accuracy, report.compressed.accuracy
    return MISSING if dense is None or small is None else points(small - dense)
