"""`compressor verify`: does a saved directory still hold, and still compute, what was saved?"""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli.flatten import Only
from compressor.cli.options import Json, Quiet, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.verification import view_verification
from compressor.schema import VerificationReport
from compressor.settings import ModelSettings


def verify(
    model: Annotated[ModelSettings, Only(("model", "factory", "trust_remote_code", "device"))],
    *,
    sha256: Annotated[
        str | None,
        typer.Option(
            help="What the SHA-256 of integrity.json should be.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest difference of a logit, as a share of the largest; the stored one "
            "without.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a saved directory is what was saved, and still computes what it did.

    Hashes, versions, ranks and shapes are compared with what integrity.json and config.json
    record, and the logits on a stored probe with those of the machine that saved it. Exit code 1
    tells that a check failed.

    Examples:
    compressor verify small
    compressor verify small --factory net.py:build
    compressor verify small --json
    """
    found: list[VerificationReport] = []

    def work(progress: Progress) -> VerificationReport:
        from compressor.checkpoint.verify import verify_directory

        found.append(verify_directory(model, sha256=sha256, tolerance=tolerance, progress=progress))
        return found[-1]

    run(work, RunSettings(as_json=as_json, quiet=quiet), view=view_verification)
    if not found[-1].ok:
        raise typer.Exit(1)
