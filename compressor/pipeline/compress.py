"""`compress`: the stages in order, from what a person names to what is saved."""

from __future__ import annotations

from dataclasses import asdict, replace

from torch import nn

from compressor.cache import Cache
from compressor.checkpoint.save import refuse_existing, refuse_inputs
from compressor.checkpoint.storage import round_to_storage_
from compressor.distributed import current
from compressor.figures import Loaded, quality_figures, split_figures
from compressor.forward import fitted
from compressor.methods.measurement import Measurement
from compressor.methods.plan import Plan, read_plan
from compressor.methods.recover import Recovery, recover
from compressor.methods.subject import Subject
from compressor.models import LoadedModel
from compressor.pipeline.request import check_names, inputs_of
from compressor.pipeline.result import make_report, save_result
from compressor.pipeline.resume import finished_before, kept_results
from compressor.pipeline.steps import (
    doubted,
    evaluate_dense,
    evaluate_run,
    grant_run,
    load_run,
    measure_run,
    plan_run,
    subject_run,
)
from compressor.progress import Progress
from compressor.schema import REPORT_FILE, RecoveryFigures, Report
from compressor.settings import CompressSettings
from compressor.speed import speed_figures
from compressor.stages import factorize, planned_forms
from compressor.stopwatch import Stopwatch


def compress_model(
    settings: CompressSettings, *, progress: Progress, watch: Stopwatch | None = None
) -> Report:
    """Load, measure, plan, factorize, evaluate, save, report.

    With ``settings.resume`` or ``settings.cache``, what a run computes is kept as it goes, and one
    that was killed ends with the same checkpoint, to the last bit, when it is called again.

    Args:
        settings: What was asked for.
        progress: Told of each step.
        watch: Where time is counted; it is told of each stage as it begins.

    Raises:
        OutputExistsError: If the output exists and may not be replaced.
        UsageError: If a name, pattern, budget or plan is wrong.
        ModelError: If the model cannot be loaded.
        DataError: If the data cannot be read or does not fit the model.
        LayerError: If a layer cannot be measured or factorized.
        BudgetError: If a budget cannot be reached.
        CheckpointError: If the result cannot be written.
    """
    refuse_inputs(settings.out, inputs_of(settings.model, settings.data, settings.plan))
    group = current()
    done = finished_before(settings, Report, REPORT_FILE) if group.leads else None
    if group.told(done is not None) and done is None:
        done = finished_before(settings, Report, REPORT_FILE)
    if done is not None:
        progress.note(f"{settings.out} was finished before by this command; nothing is to be done.")
        return done
    refuse_existing(settings.out, overwrite=settings.overwrite)
    method, seed, given = settings.method, settings.seed, None
    if settings.plan is not None:
        given = read_plan(settings.plan)
        seed = given.seed
        method = method.model_copy(
            update={
                "method": given.method,
                "gradients": given.gradients,
                "budget": given.budget,
                "conv_form": given.conv_form,
            }
        )
    check_names(method)
    watch = watch or Stopwatch()
    loaded = load_run(
        settings.model,
        settings.data,
        seed,
        watch,
        progress,
        recovery_steps=settings.recover,
        method=method,
    )
    subject = subject_run(loaded, method)
    if given is None:
        grant_run(subject, method)  # what cannot be met is refused before anything is measured
    with kept_results(settings, loaded, progress, resume=settings.resume) as cache:
        found = measure_run(loaded, method, seed, watch, progress, cache=cache)
        made = (
            plan_run(found, subject, method, watch, progress)
            if given is None
            else given.bound_to(planned_forms(given, found))
        )
        return _carry_out(
            settings, loaded, subject, made, watch=watch, progress=progress, cache=cache
        )


def _carry_out(
    settings: CompressSettings,
    loaded: Loaded,
    subject: Subject,
    made: Plan,
    *,
    watch: Stopwatch,
    progress: Progress,
    cache: Cache | None,
) -> Report:
    """Factorize as the plan says, evaluate, save, report."""
    found = made.measurement
    assert found is not None
    subject = subject.of(found.candidates)
    with watch.stage("factorize"):
        small = factorize(loaded.model.module, made, progress=progress)
        # From here on the model is what the file will hold, to the last bit.
        round_to_storage_(small, loaded.model.storage_dtypes)
    compressed = replace(loaded.model, module=small)
    with watch.stage("evaluate"):
        dense = evaluate_dense(loaded, progress, cache)
        loaded = doubted(loaded, dense, progress)
        after = evaluate_run(loaded, small, "evaluate compressed", progress, dense)
    recovery = None
    if settings.recover:
        before = after
        with watch.stage("recover"):
            compressed, done = _recover(loaded, found, compressed, settings.recover, progress)
        with watch.stage("evaluate"):
            after = evaluate_run(loaded, compressed.module, "evaluate recovered", progress, dense)
        recovery = RecoveryFigures(
            **asdict(done),
            data=split_figures(loaded.data.recovery),
            without=quality_figures(before, loaded.data),
        )
    with watch.stage("time"):
        progress.note("Timing both models.")
        speed = speed_figures(subject, compressed.module)
    report = make_report(
        settings,
        loaded,
        found,
        subject=subject,
        made=made,
        compressed=compressed,
        dense=dense,
        after=after,
        recovery=recovery,
        speed=speed,
        watch=watch,
    )
    if not loaded.forward.group.leads:
        return report
    with watch.stage("save"):
        return save_result(compressed, report, made, settings)


def _recover(
    loaded: Loaded,
    found: Measurement,
    compressed: LoadedModel,
    steps: int,
    progress: Progress,
) -> tuple[LoadedModel, Recovery]:
    def recovered(most: int | None) -> tuple[nn.Module, Recovery]:
        return recover(
            compressed.module,
            loaded.model.module,
            fitted(loaded.data.recovery, most),
            steps,
            selection=found.selection,
            forward=loaded.forward,
            progress=progress,
        )

    halvable = loaded.data.recovery.batch_size if loaded.forward.group.size == 1 else 1
    module, done = loaded.forward.room.run(recovered, halvable, progress)
    round_to_storage_(module, loaded.model.storage_dtypes)
    return replace(compressed, module=module), done
