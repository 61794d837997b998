"""`compress --stream`: measure, plan and write one unit after the other, and evaluate."""

from __future__ import annotations

import shutil
from pathlib import Path

from compressor.cache import Cache
from compressor.checkpoint.card import streamed_card
from compressor.checkpoint.integrity import write_integrity
from compressor.checkpoint.save import refuse_existing, refuse_inputs, stamped
from compressor.data import LabelledData
from compressor.figures import versions
from compressor.fingerprint import code_version
from compressor.methods.metrics import Needs
from compressor.methods.plan import Plan, check_against, read_plan
from compressor.methods.subject import Subject
from compressor.models.source import MODEL_SOURCES
from compressor.models.weights import find_weight_files
from compressor.pipeline.request import inputs_of
from compressor.pipeline.resume import finished_before, resume_directory
from compressor.pipeline.steps import grant_run
from compressor.progress import Progress
from compressor.settings import StreamSettings
from compressor.stages import plan
from compressor.stopwatch import Stopwatch
from compressor.streaming.checkpoint import Checkpoint, open_checkpoint
from compressor.streaming.evaluating import evaluated
from compressor.streaming.measurement import StreamedMeasurement
from compressor.streaming.measuring import dense_runnable, load_streamed_data, measured
from compressor.streaming.memory import return_freed_memory
from compressor.streaming.output import Workshop, growing, write_index
from compressor.streaming.report import streamed_report
from compressor.streaming.request import needs_of
from compressor.streaming.runnable import Runnable
from compressor.streaming.schema import StreamReport
from compressor.streaming.writing import lowrank_of, write_units

REPORT = "stream.json"
PLAN = "plan.json"


def stream_model(settings: StreamSettings, *, progress: Progress) -> StreamReport:
    """Compress a transformers checkpoint with never more than one block of it in memory.

    Without data, ranks follow from the weights alone, and the model is never run but for its
    shapes. With data a language model is measured, judged and evaluated block by block.

    Raises:
        OutputExistsError: If the output exists and may not be replaced.
        UsageError: If the method needs the whole model, or data that is not there, or a name,
            pattern, budget or plan is wrong.
        ModelError: If the checkpoint is no transformers directory of safetensors, is damaged, does
            not run on shapes alone, or has no blocks that can be run one by one.
        DataError: If the data cannot be read or does not fit the model.
        LayerError: If a layer cannot be measured or factorized.
        BudgetError: If a budget cannot be met.
        CheckpointError: If the result cannot be written.
    """
    refuse_inputs(settings.out, inputs_of(settings.model, settings.data, settings.plan))
    done = finished_before(settings, StreamReport, REPORT)
    if done is not None:
        shutil.rmtree(resume_directory(settings.out), ignore_errors=True)
        progress.note(f"{settings.out} was finished before by this command; nothing is to be done.")
        return done
    refuse_existing(settings.out, overwrite=settings.overwrite)
    given = None if settings.plan is None else read_plan(settings.plan)
    needs = needs_of(settings, given)
    return_freed_memory()
    watch = Stopwatch()
    seed = settings.seed if given is None else given.seed
    with watch.stage("load"):
        checkpoint = open_checkpoint(settings)
        data = load_streamed_data(settings, checkpoint, seed=seed, progress=progress)
        subject = checkpoint.subject(data)
        if given is None:
            grant_run(subject, settings.method)
        # Whether it has blocks to run one by one is known before anything is written.
        dense = None if data is None else dense_runnable(checkpoint)
    made_of = _key(settings, checkpoint.directory, data)
    out, keep = settings.out.absolute(), settings.resume
    with growing(out, made_of, keep=keep, overwrite=settings.overwrite, progress=progress) as place:
        work = place.checkpoint
        found, made = _planned(
            settings,
            given,
            checkpoint,
            data,
            needs,
            dense=dense,
            subject=subject,
            place=place,
            made_of=made_of,
            watch=watch,
            progress=progress,
        )
        with watch.stage("write"):
            keys, parameters = write_units(checkpoint, made, found.spectra, work, progress)
        size = write_index(work, keys, parameters=parameters)
        framework = checkpoint.loaded.framework
        lowrank = stamped(lowrank_of(checkpoint.units, found.candidates, made), framework)
        MODEL_SOURCES.get(framework).write_architecture(checkpoint.loaded, work, lowrank)
        pair = None
        if dense is not None and data is not None:
            with watch.stage("evaluate"):
                pair = evaluated(
                    checkpoint,
                    found.candidates,
                    made,
                    work,
                    data.test,
                    dense=dense,
                    scratch=place.scratch,
                    progress=progress,
                )
        report = streamed_report(
            settings,
            checkpoint,
            found.candidates,
            made,
            data=data,
            pair=pair,
            watch=watch,
            parameters=parameters,
            size=size,
        )
        (work / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = streamed_card(report, auto_class=type(checkpoint.module).__name__)
        (work / "README.md").write_text(card, encoding="utf-8")
        write_integrity(work, "the checkpoint was compressed in parts, and never run as a whole")
    return report


def _planned(
    settings: StreamSettings,
    given: Plan | None,
    checkpoint: Checkpoint,
    data: LabelledData | None,
    needs: Needs,
    *,
    dense: Runnable | None,
    subject: Subject,
    place: Workshop,
    made_of: dict[str, object],
    watch: Stopwatch,
    progress: Progress,
) -> tuple[StreamedMeasurement, Plan]:
    """Return what was measured, and the plan: given, left by an earlier run, or new and written."""
    path = place.checkpoint / PLAN
    made = given
    if given is None and path.is_file():
        made = read_plan(path)
    with watch.stage("measure"):
        found = measured(
            checkpoint,
            dense,
            data,
            needs,
            seed=settings.seed if given is None else given.seed,
            scratch=place.scratch,
            cache=Cache(place.scratch / "judgements", made_of) if settings.resume else None,
            progress=progress,
        )
    with watch.stage("plan"):
        if made is None:
            if needs == "weights":
                progress.note("Reading the weights for a plan, one block at a time.")
            made = plan(
                found,
                settings.method.budget,
                method=settings.method.method,
                rank_multiple=settings.method.rank_multiple,
                best_effort=settings.method.best_effort,
                subject=subject,
                progress=progress,
            )
        check_against(made, found.candidates)
        made.write(path)
    return found, made


def _key(settings: StreamSettings, directory: Path, data: LabelledData | None) -> dict[str, object]:
    """Return what every shard depends on: files by size and time, since hashing them reads all."""
    code = sorted(directory.glob("*.py"))  # that --trust-remote-code runs
    files = [*find_weight_files(directory), directory / "config.json", *code]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key: dict[str, object] = {
        "files": [list(stat) for stat in stats],
        "method": settings.method.model_dump(mode="json"),
        "plan": None if settings.plan is None else settings.plan.read_text(encoding="utf-8"),
        "versions": versions(),
        "code": code_version(),
    }
    if settings.data is not None and data is not None:
        key["data"] = [data.calibration.sha256, data.selection.sha256]
        key["batch_size"] = settings.data.batch_size
        key["seed"] = settings.seed
    return key
