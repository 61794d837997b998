"""`compressor evaluate`: accuracy and cost of any checkpoint, dense or compressed."""

from __future__ import annotations

from compressor.cli.options import RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.terminal import view_evaluation
from compressor.schema import EvaluationReport
from compressor.settings import DataSettings, ModelSettings


def evaluate(model: ModelSettings, data: DataSettings, settings: RunSettings) -> None:
    """Measure the accuracy of a checkpoint, dense or compressed, on the test part of the data.

    Examples:
    compressor evaluate small --data docs.csv
    compressor evaluate bert --data docs.csv --limit 500 --json
    """

    def work(progress: Progress) -> EvaluationReport:
        from compressor.pipeline import evaluate_model

        return evaluate_model(model, data, seed=settings.seed, progress=progress)

    run(work, settings, view=view_evaluation)
