"""The stages on models in memory: measure, plan, factorize. Pure Python objects in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from compressor.cache import Cache
from compressor.calibration import probe_inputs, replayable
from compressor.collapse.capture import Statistics
from compressor.collapse.spill import spilled
from compressor.collapse.state import state_of, statistics_of
from compressor.collapse.watch import home
from compressor.errors import BudgetError, UsageError
from compressor.forward import (
    Batch,
    Batches,
    Forward,
    batch_length,
    default_device,
    fitted,
    largest_batch,
    repeated,
    to_device,
)
from compressor.gathering import candidates_of, gather, reached
from compressor.layers.candidates import ConvForm
from compressor.layers.unfusing import unfused
from compressor.methods.budget import granted, liked_by_all, parse_budget
from compressor.methods.forms import chosen_forms
from compressor.methods.measurement import Measurement, hold_out
from compressor.methods.method import METHODS, conv_form_of
from compressor.methods.output_error import check_output_errors
from compressor.methods.pace import keep_pace
from compressor.methods.plan import Plan, check_against, planned_layers
from compressor.methods.promise import decide_again, keep_promises
from compressor.methods.recipe import Recipe
from compressor.methods.refit import can_refit, samples_to_fit
from compressor.methods.subject import Subject
from compressor.progress import SILENT, Progress
from compressor.schema import Pace, Trial
from compressor.tokens import forward_for, predicts_tokens


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    selection: Batches | None = None,
    method: str = "nc1",
    gradients: bool = True,
    classes: int | None = None,
    forward: Forward | None = None,
    heads: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    conv_form: ConvForm | None = None,
    seed: int = 0,
    cache: Cache | None = None,
    blockwise: bool = False,
    progress: Progress = SILENT,
) -> Measurement:
    """Measure collapse in every layer that can be factorized.

    Args:
        model: Any module whose output holds class logits [B, C], or logits of tokens [B, T, V]. It
            is put in eval mode and otherwise left as it is.
        batches: Batches (inputs, labels [B]); inputs may be a tensor, a tuple or a dict; labels
            may be None, and are then k-means clusters of the pooled embeddings. For a model that
            predicts tokens, labels [B, T] are the token that each position predicts, negative
            where it predicts none. An iterator, or a loader that shuffles, is read once and kept.
        selection: Held-out batches that choices are judged on. None holds out every fourth batch.
        method: Registered method that will plan; it decides what has to be gathered.
        gradients: Allow a backward pass over the calibration data.
        classes: Number of classes; None takes the width of the logits.
        forward: How to call the model; None calls it as it is, on the device of its weights.
        heads: Names of modules that make the logits, beside those that are found.
        include: Patterns of layers to take though they would be left dense by default.
        exclude: Patterns of layers to leave dense.
        conv_form: Form of convolutions with a kernel over two axes: ``channel`` (k×k, then 1×1),
            ``spatial`` (k×1, then 1×k), or ``auto``, which leaves `plan` the choice for each. None
            takes the method's own: ``auto`` of ours, ``channel`` of published rules.
        seed: Seed of every draw.
        cache: Where statistics, decompositions and judgements are kept and looked for. Its keys
            have to name the model, the batches and how both are used.
        blockwise: Measure a model that predicts tokens one block at a time, with statistics on disk
            (`compressor.collapse.block_capture`): less memory, one more forward pass.
        progress: Told of each batch.

    Raises:
        DataError: If there is no batch, or labels do not fit.
        LayerError: If a layer's rows are not finite.
        ModelError: If no layer can be factorized.
        UsageError: If a pattern or name is unknown, or the method needs gradients and none are
            allowed.
    """
    needs = METHODS.get(method).needs(gradients=gradients)
    if blockwise and not predicts_tokens(batches := replayable(batches)):
        raise UsageError(
            "Only models that predict tokens can be measured block by block, and these labels are "
            "classes of samples. Leave blockwise out."
        )
    if not gradients and needs in ("gradients", "loss"):
        raise UsageError(
            f"The method {method!r} is made of gradients, and none are allowed. Allow them, or "
            "take a method that needs none, for instance 'nc1' or 'whitened'."
        )
    model.eval()
    kept = replayable(batches)
    forward = forward or forward_for(kept, default_device(model))
    if selection is None:
        kept, selection = hold_out(kept)
    else:
        selection = replayable(selection)
    probe = probe_inputs(kept, forward.device)
    given, model = model, unfused(model, probe)
    candidates = candidates_of(
        model,
        probe,
        heads=heads,
        include=include,
        exclude=exclude,
        conv_form=conv_form_of(method, conv_form),
    )
    if cache is not None:
        # What candidates there are is settled: of the patterns only what they match counts.
        folding = [name for name, layer in candidates.layers.items() if layer.folds]
        gathered_for = {"pass": [needs, classes, seed], "layers": list(candidates.layers)}
        cache = cache.under({**gathered_for, "folding": folding} if folding else gathered_for)

    def taken(most: int | None) -> Measurement:
        own = cache if cache is None or most is None else cache.under({"batches of": most})
        calibration = fitted(kept, most)

        def gathered() -> Statistics:
            return gather(
                model,
                calibration,
                candidates,
                classes=classes,
                forward=forward,
                gradients=needs == "gradients",
                loss=needs == "loss",
                seed=seed,
                probe=probe if blockwise else None,
                row_samples=samples_to_fit(kept) if can_refit(candidates.layers) else 0,
                progress=progress,
            )

        statistics = None
        if needs != "weights" and (own is None or blockwise):
            statistics = gathered()  # block by block it is never in memory as a whole
        elif needs != "weights" and own is not None:
            state = own.tensors("statistics", {}, lambda: state_of(gathered()))
            statistics = statistics_of(state, candidates, home(forward.device))
        if statistics is not None and forward.group.size == 1:  # else decompositions are shared
            try:
                statistics = spilled(statistics, candidates, home(forward.device))
            except OSError as error:
                progress.note(f"Statistics stay in memory, for they cannot be spilled: {error}")
        return Measurement(
            model=model,
            candidates=candidates if statistics is None else reached(candidates, statistics),
            statistics=statistics,
            calibration=calibration,
            selection=None if selection is None else fitted(selection, most),
            forward=forward,
            gradients=needs == "gradients",
            seed=seed,
            cache=own,
            given=given,
            conv_form=conv_form,
            blockwise=blockwise,
        )

    # Processes that share a pass cannot begin it again one by one.
    halvable = largest_batch(kept) if forward.group.size == 1 else 1
    found = forward.room.run(taken, halvable, progress)
    return found.remade_by(taken) if halvable > 1 else found


def plan(
    measurement: Measurement,
    budget: str | Sequence[str],
    *,
    method: str = "nc1",
    rank_multiple: int = 1,
    best_effort: bool = False,
    subject: Subject | None = None,
    recipe: Recipe | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """Choose a rank for every layer within a budget.

    Args:
        measurement: From `measure`, gathered for the same method or one that needs no more.
        budget: One or several budgets, for instance ``"layers=50%"``.
        method: Registered method.
        rank_multiple: Ranks are multiples of this.
        best_effort: Where a budget cannot be met, plan the nearest that can; the plan's ``unmet``
            says what was not.
        subject: What budgets are counted on; None counts on the model as it is measured, at the
            size of the calibration data.
        recipe: How to truncate and share, where that is settled: the method then judges nothing,
            unless its allocation is a rule of its own. None lets the method decide.
        progress: Told of each step.

    Raises:
        UsageError: If a budget cannot be read, or the measurement lacks what the method needs.
        BudgetError: If a budget cannot be met.
    """

    def planned(most: int | None) -> Plan:
        return _planned(
            measurement.at_most(most),
            budget,
            method=method,
            rank_multiple=rank_multiple,
            best_effort=best_effort,
            subject=subject,
            recipe=recipe,
            progress=progress,
        )

    return measurement.forward.room.run(planned, measurement.halvable, progress)


def _planned(
    measurement: Measurement,
    budget: str | Sequence[str],
    *,
    method: str,
    rank_multiple: int,
    best_effort: bool,
    subject: Subject | None,
    recipe: Recipe | None,
    progress: Progress,
) -> Plan:
    member = METHODS.get(method)
    needs = member.needs(gradients=measurement.gradients)
    if not measurement.has(needs):
        raise UsageError(
            f"The method {method!r} needs a {needs} pass that this measurement lacks: call "
            f"measure(..., method={method!r})."
        )
    texts = (budget,) if isinstance(budget, str) else tuple(budget)
    budgets = [parse_budget(text) for text in texts]
    subject = subject or subject_of(measurement)
    multiple = liked_by_all(budgets, subject, multiple=rank_multiple)
    if conv_form_of(method, measurement.conv_form) == "auto":
        forms = chosen_forms(measurement, subject, budgets, multiple=multiple)
        measurement = measurement.in_forms(forms)
    subject = subject.of(measurement.candidates)
    allowed = granted(
        budgets,
        subject,
        multiple=rank_multiple,
        best_effort=best_effort,
    )
    promises = [budget for budget in budgets if budget.kind == "drop"]
    trials: tuple[Trial, ...] = ()
    unmet = allowed.unmet
    if promises:
        search = keep_promises(
            measurement,
            member,
            promises,
            allowed.constraints,
            multiple=allowed.multiple,
            progress=progress,
        )
        decision, trials, unmet = search.decision, search.trials, (*unmet, *search.unmet)
    elif recipe is not None:
        decision = decide_again(
            member,
            measurement,
            allowed.constraints,
            recipe,
            multiple=allowed.multiple,
            progress=progress,
        )
    else:
        decision = member.decide(
            measurement, allowed.constraints, multiple=allowed.multiple, progress=progress
        )
    timed = [budget for budget in budgets if budget.kind == "latency"]
    paces: tuple[Pace, ...] = ()
    if timed:
        paced = keep_pace(
            measurement,
            member,
            timed,
            decision,
            allowed.constraints,
            subject=subject,
            multiple=allowed.multiple,
            adjust=not promises,
            progress=progress,
        )
        decision, paces, unmet = paced.decision, paced.paces, (*unmet, *paced.unmet)
    if unmet and not best_effort:
        raise BudgetError(" ".join(unmet))
    made = Plan(
        method=method,
        budget=texts,
        recipe=decision.recipe,
        seed=measurement.seed,
        gradients=measurement.gradients or measurement.has("loss"),
        layers=planned_layers(
            measurement.candidates.layers, decision.ranks, measurement.nc1_quotients()
        ),
        selection=decision.selection,
        unmet=unmet,
        trials=trials,
        paces=paces,
    )
    return made.bound_to(measurement)


def subject_of(measurement: Measurement) -> Subject:
    """Return what budgets are counted on where nothing else says: the calibration data's inputs."""
    inputs, _ = next(batch for batch in measurement.calibration if batch_length(batch[0]))
    device = measurement.forward.device
    return Subject(
        model=measurement.model,
        candidates=measurement.candidates,
        inputs=lambda samples: to_device(repeated(inputs, samples), device),
        forward=measurement.forward,
    )


def factorize(
    model: nn.Module,
    plan: Plan,
    *,
    measurement: Measurement | None = None,
    progress: Progress = SILENT,
) -> nn.Module:
    """Return a factorized copy of ``model``; tensors that do not change are shared with it.

    Args:
        model: The dense model that was measured.
        plan: From `plan`, or `read_plan`.
        measurement: What the plan's recipe is carried out with; a plan fresh from `plan` brings
            its own.
        progress: Told of each step.

    Raises:
        UsageError: If the plan has no measurement, or does not fit the model.
        LayerError: If a layer cannot be decomposed, or its outputs on calibration data are off by
            much more than was predicted.
    """
    measurement = measurement or plan.measurement
    if measurement is None:
        raise UsageError(
            "A plan read from a file carries no statistics: pass measurement=measure(model, …)."
        )
    if not any(model is known for known in (measurement.given, measurement.model)):
        raise UsageError("The plan was made for another model object; measure this one.")
    measurement = planned_forms(plan, measurement)

    def carried_out(most: int | None) -> nn.Module:
        found = measurement.at_most(most)
        compressed = found.factorized(plan.ranks, plan.recipe, progress=progress)[0]
        check_output_errors(found, compressed, plan.recipe)
        return compressed

    return measurement.forward.room.run(carried_out, measurement.halvable, progress)


def planned_forms(plan: Plan, measurement: Measurement) -> Measurement:
    """Return a measurement whose layers have the forms that a plan gives them.

    Raises:
        UsageError: If the plan does not fit the model.
    """
    check_against(plan, measurement.candidates)
    return measurement.in_forms(plan.kinds)
