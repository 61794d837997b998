"""What training after the truncation did, beside what the truncation alone came to (pure)."""

from __future__ import annotations

from compressor.report.figures import MISSING, nats, percent
from compressor.schema import QualityFigures, RecoveryFigures, Report


def recovery_sentence(recovery: RecoveryFigures) -> str:
    """Say how long was trained, and whose factors were kept."""
    kept = f"those of step {recovery.best_step}" if recovery.best_step else "those from before"
    best = "best by both" if recovery.labels else "nearest to it"
    return (
        f"{recovery.steps} steps of training on {recovery.teachers}; kept the factors {best} on "
        f"the selection data, {kept}: KL {nats(recovery.kl_before)} → {nats(recovery.kl_after)}"
    )


def recovery_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return label, dense, truncated and recovered of each figure that training may change."""
    if report.recovery is None:
        return []
    members = (report.dense, report.recovery.without, report.compressed)
    rows = [
        _row("accuracy", *(percent(member.accuracy, 2) for member in members)),
        _row("perplexity", *(_perplexity(member) for member in members)),
        _row("same prediction as dense", "", *(percent(m.agreement, 2) for m in members[1:])),
        _row("KL from dense, nats", "", *(nats(m.kl_to_dense) for m in members[1:])),
    ]
    return [row for row in rows if row[-1] != MISSING]


def _row(label: str, *cells: str) -> tuple[str, str, str, str]:
    dense, truncated, recovered = cells
    return label, dense, truncated, recovered


def _perplexity(figures: QualityFigures) -> str:
    return MISSING if figures.perplexity is None else f"{figures.perplexity:.2f}"
