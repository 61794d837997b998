"""`evaluate`: how any checkpoint fares on test data and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.errors import CheckpointError, DataError
from compressor.evaluation.harness import parse_tasks, run_tasks
from compressor.figures import flops, metric_figures, parameters, perplexities
from compressor.models import LoadedModel, load_model
from compressor.pipeline.steps import doubted, evaluate_run, load_run
from compressor.progress import Progress
from compressor.report.runs import read_report
from compressor.schema import REPORT_FILE, EvaluationReport, TaskFigures
from compressor.settings import DataSettings, ModelSettings
from compressor.stopwatch import Stopwatch


def evaluate_model(
    model: ModelSettings,
    data: DataSettings,
    *,
    evaluations: Sequence[str] = (),
    seed: int,
    progress: Progress,
) -> EvaluationReport:
    """Evaluate any checkpoint, dense or compressed, on the test split and on named tasks.

    Args:
        model: Which model.
        data: Which data; ``data.data`` may be empty where there are tasks.
        evaluations: ``lm-eval:TASK`` each.
        seed: Seed of every draw.
        progress: Told of each batch.

    Raises:
        DataError: If the data carries no labels, or a task cannot be run.
        MissingExtraError: If a task is asked for, and its harness is not installed.
        CompressorError: As `compress_model`.
    """
    tasks = parse_tasks(evaluations)
    watch = Stopwatch()
    if not data.data:
        with watch.stage("load"):
            alone = load_model(model)
        return _evaluated(alone, model, data, tasks, seed=seed, watch=watch, progress=progress)
    loaded = load_run(model, data, seed, watch, progress, splits=("test",))
    if loaded.data.test.labels is None:
        raise DataError(
            f"{data.data} carries no labels, and accuracy needs them. Name the column with "
            "--label-column, or give labelled data."
        )
    with watch.stage("evaluate"):
        found = evaluate_run(loaded, loaded.model.module, "evaluate", progress)
        loaded = doubted(loaded, found, progress)
    report = _evaluated(loaded.model, model, data, tasks, seed=seed, watch=watch, progress=progress)
    return report.model_copy(
        update={
            "accuracy": found.accuracy,
            "loss": found.loss,
            "samples": found.samples,
            "sha256": loaded.data.test.sha256,
            "flops": flops(loaded),
            "metrics": metric_figures(found),
            "notes": (*loaded.notes, *_drawn_otherwise(model, data, loaded.data.test.sha256)),
            **perplexities(found, loaded.data.test_bytes),
        }
    )


def _drawn_otherwise(model: ModelSettings, data: DataSettings, sha256: str) -> tuple[str, ...]:
    """Return a note where a compression of the same data was tested on other samples of it."""
    path = Path(model.model) / REPORT_FILE
    if not path.is_file():
        return ()
    try:
        known = read_report(path).data
    except CheckpointError as error:
        return (str(error),)
    same = Path(known.reference).resolve() == Path(data.data).resolve()
    if not same or known.test.sha256 == sha256:
        return ()
    return (
        f"These are not the samples that {path} tells of, though the data is the same: some may be "
        "among those that the model was calibrated on. Give what draws samples (--calibration, "
        "--selection, --limit, --seed) as in its command.",
    )


def _evaluated(
    loaded: LoadedModel,
    model: ModelSettings,
    data: DataSettings,
    tasks: Sequence[str],
    *,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
) -> EvaluationReport:
    """Return the report of a model on tasks alone."""
    scores: tuple[TaskFigures, ...] = ()
    if tasks:
        progress.note(f"Running {', '.join(tasks)} in the lm-evaluation-harness.")
        with watch.stage("evaluate"):
            scores = run_tasks(
                loaded,
                tasks,
                batch_size=data.batch_size,
                max_length=data.max_length,
                limit=data.limit,
                seed=seed,
            )
    return EvaluationReport(
        accuracy=None,
        loss=None,
        samples=None,
        sha256=None,
        model=model.model,
        framework=loaded.framework,
        parameters=parameters(loaded.module),
        bytes=loaded.bytes_on_disk,
        flops=None,
        seconds=watch.seconds["evaluate"],
        tasks=scores,
        notes=loaded.notes,
    )
