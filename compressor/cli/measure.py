"""`compressor measure`: collapse and rank of every layer."""

from __future__ import annotations

from typing import Annotated

from compressor.cli.flatten import Only
from compressor.cli.options import RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.terminal import view_measurement
from compressor.schema import MeasurementReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings


def measure(
    model: ModelSettings,
    data: DataSettings,
    method: Annotated[MethodSettings, Only(("include", "exclude", "blockwise"))],
    settings: RunSettings,
) -> None:
    """Measure neural collapse and rank of every layer on labelled data.

    Examples:
    compressor measure bert --data docs.csv --max-length 64
    compressor measure tf_efficientnet_lite0 --data photos --limit 500 --json
    """

    def work(progress: Progress) -> MeasurementReport:
        from compressor.pipeline import measure_model

        return measure_model(model, data, method, seed=settings.seed, progress=progress)

    run(work, settings, view=view_measurement)
