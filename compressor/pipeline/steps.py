"""The steps that runs share, each as its settings ask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor, nn

from compressor.cache import Cache, Tensors
from compressor.calibration import probe_inputs
from compressor.data import SPLITS, load_data
from compressor.distributed import current
from compressor.errors import UsageError
from compressor.evaluation.loop import Evaluation, evaluate, score
from compressor.figures import Loaded, doubts, example_length
from compressor.forward import Forward, default_device
from compressor.gathering import candidates_of
from compressor.layers.unfusing import unfused
from compressor.methods.budget import Granted, granted, parse_budget
from compressor.methods.measurement import Measurement
from compressor.methods.method import conv_form_of
from compressor.methods.plan import Plan
from compressor.methods.recipe import Recipe
from compressor.methods.subject import Subject
from compressor.models import load_model
from compressor.pipeline.request import enough_to_judge
from compressor.progress import Progress
from compressor.settings import DataSettings, MethodSettings, ModelSettings
from compressor.stages import measure, plan
from compressor.stopwatch import Stopwatch
from compressor.tokens import TokenForward


def load_run(
    model: ModelSettings,
    data: DataSettings,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
    *,
    splits: Collection[str] = SPLITS,
    recovery_steps: int = 0,
    method: MethodSettings | None = None,
) -> Loaded:
    """Load a model and its data, enough of it to judge the budgets that a method is given."""
    with watch.stage("load"):
        found = load_model(model)
        for note in found.notes:
            progress.note(note)
        if method is not None:
            data = enough_to_judge(data, method, found.task)
        labelled = load_data(
            data,
            found,
            seed=seed,
            splits=splits,
            recovery_steps=recovery_steps,
            progress=progress,
        )
    device = default_device(found.module)
    forward = Forward(classes=labelled.classes, device=device, group=current())
    if found.task != "classification":
        if current().size > 1:
            raise UsageError(
                "Passes over models that predict tokens are not shared between processes yet. "
                "Start the command without torchrun."
            )
        forward = TokenForward(device=device)
    return Loaded(found, labelled, forward)


def subject_run(loaded: Loaded, method: MethodSettings) -> Subject:
    """Return what budgets are counted on: the model, its candidates, and inputs like the data's.

    Raises:
        ModelError: If no layer can be factorized.
        UsageError: If a pattern matches no layer.
    """
    probe = probe_inputs(loaded.data.calibration, loaded.forward.device)
    module = unfused(loaded.model.module.eval(), probe)
    candidates = candidates_of(
        module,
        probe,
        heads=loaded.model.heads,
        include=method.include,
        exclude=method.exclude,
        conv_form=conv_form_of(method.method, method.conv_form),
    )
    length = example_length(loaded.data)
    return Subject(
        model=module,
        candidates=candidates,
        inputs=lambda samples: loaded.model.example_inputs(batch_size=samples, length=length),
        storage_dtypes=loaded.model.storage_dtypes,
        forward=loaded.forward,
        runtime=method.runtime,
    )


def grant_run(subject: Subject, method: MethodSettings) -> Granted:
    """Return what the budgets allow, as far as it can be told before anything is measured.

    Raises:
        BudgetError: If a budget cannot be met, and no best effort was asked for.
    """
    return granted(
        [parse_budget(budget) for budget in method.budget],
        subject.of(subject.candidates.thinnest()),
        multiple=method.rank_multiple,
        best_effort=method.best_effort,
    )


def measure_run(
    loaded: Loaded,
    method: MethodSettings,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
    *,
    cache: Cache | None = None,
) -> Measurement:
    """Measure the model on its calibration data, as a method's settings ask."""
    with watch.stage("measure"):
        return measure(
            loaded.model.module,
            loaded.data.calibration,
            selection=loaded.data.selection if len(loaded.data.selection) else None,
            method=method.method,
            gradients=method.gradients,
            classes=len(loaded.data.class_names) or None,
            forward=loaded.forward,
            heads=loaded.model.heads,
            include=method.include,
            exclude=method.exclude,
            conv_form=method.conv_form,
            seed=seed,
            cache=cache,
            blockwise=method.blockwise,
            progress=progress,
        )


def plan_run(
    found: Measurement,
    subject: Subject,
    method: MethodSettings,
    watch: Stopwatch,
    progress: Progress,
    *,
    recipe: Recipe | None = None,
) -> Plan:
    """Choose ranks as a method's settings ask, by a recipe where that is settled."""
    with watch.stage("plan"):
        return plan(
            found,
            method.budget,
            method=method.method,
            rank_multiple=method.rank_multiple,
            best_effort=method.best_effort,
            subject=subject,
            recipe=recipe,
            progress=progress,
        )


def evaluate_run(
    loaded: Loaded,
    module: nn.Module,
    description: str,
    progress: Progress,
    dense: Evaluation | None = None,
) -> Evaluation:
    """Evaluate a module on the test data, beside the dense model's logits where they are given."""
    test = loaded.data.test
    return evaluate(
        module,
        test,
        forward=loaded.forward,
        dense_logits=None if dense is None else dense.logits,
        progress=progress,
        description=description,
        total=-(-len(test) // test.batch_size),
    )


def evaluate_dense(loaded: Loaded, progress: Progress, cache: Cache | None) -> Evaluation:
    """Evaluate the dense model on the test data, or score the logits that a cache holds of it."""

    def found() -> Evaluation:
        return evaluate_run(loaded, loaded.model.module, "evaluate dense", progress)

    if cache is None or isinstance(loaded.forward, TokenForward):
        return found()  # logits of tokens are too many to keep

    def make() -> Tensors:
        logits = found().logits
        assert isinstance(logits, Tensor)
        return {"logits": logits}

    test = loaded.data.test
    return score(cache.tensors("logits", {"split": test.sha256}, make)["logits"], test.labels)


def doubted(loaded: Loaded, found: Evaluation, progress: Progress) -> Loaded:
    """Return the model with a note where it does no better than guessing."""
    notes = doubts(found, len(loaded.data.class_names))
    for note in notes:
        progress.note(note)
    return replace(loaded, model=replace(loaded.model, notes=(*loaded.model.notes, *notes)))
