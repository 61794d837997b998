"""`compressor compress`: from a checkpoint and data to a smaller checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.flatten import Without
from compressor.cli.options import CacheDirectory, Overwrite, Recover, Resume, RunSettings, Stream
from compressor.cli.run import require_met, run, typed_command
from compressor.errors import UsageError
from compressor.progress import Progress
from compressor.report.streamed import view_streamed
from compressor.report.terminal import view_report
from compressor.schema import Report
from compressor.settings import (
    CompressSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    StreamSettings,
    check_target,
)
from compressor.streaming.schema import StreamReport


def compress(
    *,
    model: ModelSettings,
    data: Annotated[DataSettings, Without("data")],
    method: MethodSettings,
    out: Annotated[
        Path,
        typer.Option(help="Directory to write.", rich_help_panel="Run", show_default=False),
    ],
    settings: RunSettings,
    plan: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Replay the ranks of this plan.json instead of choosing them.",
            rich_help_panel="Method",
        ),
    ] = None,
    recover: Recover = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    cache: CacheDirectory = None,
    stream: Stream = False,
) -> None:
    """Make a checkpoint smaller: measure, plan, factorize, evaluate, save, report.

    Examples:
    compressor compress bert --data docs.csv --budget layers=60% --out small
    compressor compress resnet50 --data photos --budget params=80% --out small
    compressor compress net.py:build --data photos --budget layers=0.7 --out small
    compressor compress bert --data docs.csv --budget size=40MB --out small
    compressor compress bert --data docs.csv --plan plan.json --out small
    compressor compress bert --data d.csv --plan plan.json --recover 200 --out out
    compressor compress bert --data d.csv --budget layers=60% --out small --resume
    compressor compress llm --stream --data t.txt --budget layers=80% --out small
    compressor compress llm --stream --method svd --budget layers=80% --out small
    """
    check_target(method, plan)

    if stream:
        _refuse_unused(data, method, recover=recover, cache=cache)
        _stream(
            StreamSettings(
                model=model,
                data=data if data.data else None,
                method=method,
                out=out,
                plan=plan,
                overwrite=overwrite,
                resume=resume,
                seed=settings.seed,
                command=typed_command(),
            ),
            settings,
        )
        return
    if not data.data:
        raise UsageError(
            "Nothing to measure on: give --data. Without it, --stream goes by the weights alone."
        )

    def work(progress: Progress) -> Report:
        from compressor.pipeline import compress_model

        return compress_model(
            CompressSettings(
                model=model,
                data=data,
                method=method,
                out=out,
                plan=plan,
                recover=recover,
                overwrite=overwrite,
                resume=resume,
                cache=cache,
                seed=settings.seed,
                command=typed_command(),
            ),
            progress=progress,
        )

    require_met(run(work, settings, view=view_report, shared=True).unmet)


def _refuse_unused(
    data: DataSettings, method: MethodSettings, *, recover: int, cache: Path | None
) -> None:
    """Refuse options that streaming would not look at.

    Raises:
        UsageError: If there is one.
    """
    unused = [name for name, given in (("--recover", recover), ("--cache", cache)) if given]
    if unused:
        raise UsageError(
            "--stream never has the whole model in memory, and keeps results by --resume "
            f"alone: leave out {' and '.join(unused)}."
        )
    if method.runtime != MethodSettings().runtime:
        raise UsageError("--stream times no model: leave out --runtime.")
    if data.data:
        return
    of_data = [name for name, value in data if value != getattr(DataSettings(data=""), name)]
    if of_data:
        words = " and ".join(f"--{name.replace('_', '-')}" for name in of_data)
        raise UsageError(
            f"--stream runs the model where there is --data: give it too, or leave out {words}."
        )


def _stream(asked: StreamSettings, settings: RunSettings) -> None:
    """Compress in parts, and tell what was made."""

    def work(progress: Progress) -> StreamReport:
        from compressor.streaming.run import stream_model

        return stream_model(asked, progress=progress)

    require_met(run(work, settings, view=view_streamed).unmet)
