"""`compressor export`: a compressed model as a file or directory that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.options import BatchSize, Overwrite, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.export import view_export
from compressor.schema import ExportReport
from compressor.settings import ModelSettings


def export(
    model: ModelSettings,
    *,
    to: Annotated[
        str,
        typer.Option(
            help="onnx, torch-export, dense (a directory without factors) or safetensors.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write; a directory for dense.", rich_help_panel="Run", show_default=False
        ),
    ],
    settings: RunSettings,
    overwrite: Overwrite = False,
    batch_size: BatchSize = None,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Synthetic samples to compare outputs on.", rich_help_panel="Run"),
    ] = 3,
) -> None:
    """Write a compressed model so that it runs without compressor, and check what was written.

    The written model's outputs are compared with the original's; nothing is kept if they differ.

    Examples:
    compressor export small --to onnx --out small.onnx
    compressor export small --to dense --out dense
    compressor export small --to torch-export --out small.pt2 --json
    """

    def work(progress: Progress) -> ExportReport:
        from compressor.checkpoint.export.run import export_reference

        return export_reference(
            model,
            to,
            out,
            overwrite=overwrite,
            batch_size=batch_size or 2,
            samples=limit,
            progress=progress,
        )

    run(work, settings, view=view_export)
