"""The model card: README.md of a saved directory, for whoever finds it without its maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.checkpoint.instructions import Instructions, instructions
from compressor.schema import Report
from compressor.streaming.schema import StreamReport

LIBRARIES = {"transformers": "transformers", "timm": "timm", "torch": "pytorch"}


def model_card(report: Report, *, auto_class: str = "AutoModelForSequenceClassification") -> str:
    """Return the text of README.md: what the model is, what it scores, how to load and remake it.

    Args:
        report: The report of the compression.
        auto_class: The transformers class that loads the model (transformers models only).
    """
    directory = _name(report.out)
    loading = instructions(report.framework, directory, auto_class=auto_class)
    return "\n".join(
        (
            *_head(report.framework, directory),
            f"`{report.model}`, made smaller after training by low-rank factorization "
            f"({_layers(report)}), with method `{report.method}` and budget "
            f"{_budgets(report.budget)}.",
            "",
            "## Before and after",
            "",
            _table(report),
            "",
            *_recovery(report),
            _data(report),
            *(f"\nNote: {note}" for note in report.notes),
            "",
            *_loading(loading),
            "## How it was made",
            "",
            _command(report),
            "",
            "`plan.json` holds every rank, and `compressor compress --plan plan.json` replays it; "
            "`report.json` holds every figure. Seed "
            f"{report.seed}, device {report.device}; {_versions(report.versions)}.",
            "",
        )
    )


def streamed_card(report: StreamReport, *, auto_class: str) -> str:
    """Return the text of README.md for a checkpoint that was compressed in parts.

    Args:
        report: The report of the compression.
        auto_class: The transformers class that loads the model.
    """
    directory = _name(report.out)
    loading = instructions("transformers", directory, auto_class=auto_class)
    factorized = sum(layer.rank < layer.full_rank for layer in report.layers)
    return "\n".join(
        (
            *_head("transformers", directory),
            f"`{report.model}`, made smaller by low-rank factorization ({factorized} of "
            f"{len(report.layers)} candidate layers) with method `{report.method}` and budget "
            f"{_budgets(report.budget)}.",
            "",
            "| | dense | compressed |",
            "|---|---:|---:|",
            f"| parameters | {report.parameters:,} | {report.compressed_parameters:,} |",
            f"| weight files (bytes) | {report.bytes:,} | {report.compressed_bytes:,} |",
            "",
            *_streamed_quality(report),
            "",
            *_loading(loading),
            "## How it was made",
            "",
            f"```\n{report.command}\n```" if report.command else "From Python.",
            "",
            "`plan.json` holds every rank, `stream.json` every figure; "
            f"{_versions(report.versions)}.",
            "",
        )
    )


def _streamed_quality(report: StreamReport) -> tuple[str, ...]:
    dense, small, data = report.dense, report.compressed, report.data
    if dense is None or small is None or data is None:
        return ("It was compressed in parts, from its weights alone, and has not been evaluated.",)
    return (
        "| | dense | compressed |",
        "|---|---:|---:|",
        f"| perplexity | {_number(dense.perplexity)} | {_number(small.perplexity)} |",
        f"| accuracy | {_percent(dense.accuracy)} | {_percent(small.accuracy)} |",
        f"| KL to dense (nats) | | {_number(small.kl_to_dense)} |",
        "",
        f"It was measured and evaluated in parts, on windows of `{data.reference}`: "
        f"{data.calibration.samples:,} to calibrate, {data.selection.samples:,} to select and "
        f"{data.test.samples:,} to test. The three are disjoint.",
        *(f"\nNote: {note}" for note in report.notes),
    )


def _name(out: str) -> str:
    return out.rstrip("/").rpartition("/")[2] or out


def _head(framework: str, name: str) -> tuple[str, ...]:
    tags = ("compressor", "low-rank", "model-compression")
    front = (f"library_name: {LIBRARIES[framework]}", "tags:", *(f"- {tag}" for tag in tags))
    return ("---", *front, "---", "", f"# {name}", "")


def _budgets(budgets: Sequence[str]) -> str:
    return ", ".join(f"`{budget}`" for budget in budgets) or "(from a plan)"


def _loading(loading: Instructions) -> tuple[str, ...]:
    return (
        "## Loading",
        "",
        "Loading needs the Python package `compressor`; in a copy of its source, "
        "`pip install .` installs it.",
        "",
        f"```python\n{loading.code}\n```",
        "",
        loading.remark,
        "",
    )


def _layers(report: Report) -> str:
    factorized = sum(layer.rank < layer.full_rank for layer in report.layers)
    return f"{factorized} of {len(report.layers)} candidate layers"


def _table(report: Report) -> str:
    dense, compressed = report.dense, report.compressed
    rows = [
        ("accuracy", _percent(dense.accuracy), _percent(compressed.accuracy)),
        ("agreement with dense", "", _percent(compressed.agreement)),
        ("KL to dense (nats)", "", _number(compressed.kl_to_dense)),
        ("parameters", f"{dense.parameters:,}", f"{compressed.parameters:,}"),
        (
            "weights of candidate layers",
            f"{dense.layer_parameters:,}",
            f"{compressed.layer_parameters:,}",
        ),
        ("weight files (bytes)", _count(dense.bytes), _count(compressed.bytes)),
        ("operations per sample", f"{dense.flops:,}", f"{compressed.flops:,}"),
    ]
    lines = ["| | dense | compressed |", "|---|---:|---:|"]
    lines += [f"| {name} | {before} | {after} |" for name, before, after in rows]
    return "\n".join(lines)


def _data(report: Report) -> str:
    data = report.data
    return (
        f"Measured on {data.test.samples:,} test samples of `{data.reference}` "
        f"({data.classes} classes); calibrated on {data.calibration.samples:,} and selected on "
        f"{data.selection.samples:,} other samples. The three are disjoint, and report.json "
        "identifies each by a hash."
    )


def _recovery(report: Report) -> list[str]:
    """Return what training added, apart from the figures of the truncation alone."""
    recovery = report.recovery
    if recovery is None:
        return []
    return [
        f"After truncation the factors were trained for {recovery.steps} steps on "
        f"{recovery.teachers}. Without that: accuracy "
        f"{_percent(recovery.without.accuracy)}, KL {_number(recovery.without.kl_to_dense)}.",
        "",
    ]


def _command(report: Report) -> str:
    if report.command is None:
        return "Made from Python with `compressor.compress`; `report.json` holds the settings."
    return f"```\n{report.command}\n```"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
