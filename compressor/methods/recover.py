"""Recovering accuracy after truncation: the factors learn the dense model's predictions.

Knowledge distillation (Hinton et al., arXiv 1503.02531) of nothing but the factors and the biases
of factorized layers. It needs no labels; where there are some, they teach too. This is training, if
little of it, so it is never part of the training-free figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from compressor.errors import DataError, ModelError, UsageError
from compressor.evaluation.loop import evaluate
from compressor.forward import Batch, Batches, Forward
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import structural_copy
from compressor.methods.distillation import learn
from compressor.progress import SILENT, Progress
from compressor.tokens import forward_for


@dataclass(frozen=True)
class RecoverySettings:
    """How the factors are trained.

    Args:
        learning_rate: Largest rate of AdamW; it rises over the warm-up and falls as a cosine to 0.
        warmup: Share of the steps over which the rate rises.
        temperature: Both predictions are softened by it.
        label_weight: Weight of the cross entropy with the labels, where samples have classes.
        clip: Largest norm of the gradient.
        checks: How often the model is judged on held-out batches on the way.
    """

    learning_rate: float = 2e-4
    warmup: float = 0.05
    temperature: float = 2.0
    label_weight: float = 4.0
    clip: float = 1.0
    checks: int = 8


DEFAULTS = RecoverySettings()


@dataclass(frozen=True)
class Recovery:
    """What the training did, judged on held-out batches.

    Args:
        steps: Steps taken.
        best_step: Step whose factors were kept; 0 keeps those from before.
        labels: Whether labels taught beside the dense model.
        kl_before: Mean KL to the dense model before, in nats; None without held-out batches.
        kl_after: The same with the factors that were kept.
    """

    steps: int
    best_step: int
    labels: bool
    kl_before: float | None
    kl_after: float | None


def recover(
    model: nn.Module,
    dense: nn.Module,
    batches: Batches,
    steps: int,
    *,
    settings: RecoverySettings = DEFAULTS,
    selection: Batches | None = None,
    forward: Forward | None = None,
    progress: Progress = SILENT,
) -> tuple[nn.Module, Recovery]:
    """Return a copy of ``model`` whose factors were trained to predict as ``dense`` does.

    Everything else is frozen, and both models stay in eval mode: no dropout, and BatchNorm keeps
    its statistics. `compressor.methods.distillation` has the loss. On the held-out batches the KL,
    plus as much of the cross entropy, is taken now and then, and the factors that had the least are
    kept, among them those from before; without such batches, the last ones.

    Args:
        model: A factorized model; it is left as it is, and the copy shares what is not trained.
        dense: The model that it was made from.
        batches: Batches (inputs, labels), run through in their order again and again. Labels are
            classes [B], or None; those of tokens [B, T] tell where one is predicted. Mixed batches
            serve best: not one class after another.
        steps: Number of steps, one batch each.
        settings: How to train.
        selection: Held-out batches, of which none is in ``batches``.
        forward: How to call both models; None calls them as they are.
        progress: Told of each step.

    Raises:
        DataError: If there is no batch, they can be iterated only once, some carry no labels
            though the first does, or a label is no class of the model.
        ModelError: If the loss is not finite.
        UsageError: If the number of steps is below 1, or ``model`` has no factorized layer.
    """
    if steps < 1:
        raise UsageError(f"Cannot recover in {steps} steps; expected at least 1.")
    model = structural_copy(model)
    trained = _own_factors(model)
    if not trained:
        raise UsageError("The model has no factorized layer, so there is nothing to recover.")
    forward = forward or forward_for(batches, trained[0].device)
    labelled = _have_classes(batches)
    weight = settings.label_weight if labelled else 0.0
    judge = _judge(dense, selection, forward, weight)

    model.eval()
    own = {id(parameter) for parameter in trained}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    for parameter in frozen:
        parameter.requires_grad_(False)
    best_step, before = 0, judge(model)
    best, kept = before, [p.detach().clone() for p in trained]
    checks = {round(steps * (i + 1) / settings.checks) for i in range(settings.checks)}
    try:
        taken = _steps(
            model,
            dense,
            trained,
            islice(_again_and_again(batches), steps),
            settings=settings,
            weight=weight,
            steps=steps,
            forward=forward,
        )
        for step in progress.track(taken, description="recover", total=steps):
            if step not in checks:
                continue
            found = judge(model)
            if found is None or best is None or found.loss < best.loss:
                best_step, best = step, found
                kept = [p.detach().clone() for p in trained]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
                parameter.grad = None
    return model, Recovery(
        steps,
        best_step,
        labels=weight > 0,
        kl_before=None if before is None else before.kl,
        kl_after=None if best is None else best.kl,
    )


def _steps(
    model: nn.Module,
    dense: nn.Module,
    trained: Sequence[nn.Parameter],
    batches: Iterable[Batch],
    *,
    settings: RecoverySettings,
    weight: float,
    steps: int,
    forward: Forward,
) -> Iterator[int]:
    """Take one step after another, and yield the number of those taken."""
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(settings, steps))
    for step, (inputs, labels) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = learn(
            model,
            dense,
            inputs,
            labels,
            forward=forward,
            temperature=settings.temperature,
            label_weight=weight,
        )
        if not torch.isfinite(loss):
            raise ModelError(
                f"Recovery diverged: the loss is {loss.item()} at step {step} of {steps}. "
                "Take a smaller learning rate, or leave recovery out."
            )
        nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        scheduler.step()
        yield step


def _again_and_again(batches: Batches) -> Iterator[Batch]:
    """Yield the batches, round after round without end."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise DataError(
                "There is nothing to recover on: no batch was given, or they can be iterated only "
                "once. Give a list of them."
            )


def _rate(settings: RecoverySettings, steps: int) -> Callable[[int], float]:
    """Return the share of the learning rate at each step: a linear rise, then half a cosine."""
    rise = max(round(settings.warmup * steps), 1)

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))

    return share


def _own_factors(model: nn.Module) -> list[nn.Parameter]:
    """Give factorized layers parameters of their own, shared with no other model; return them."""
    found: dict[int, nn.Parameter] = {}
    for layer in model.modules():
        if not isinstance(layer, LOW_RANK_TYPES):
            continue
        for module in layer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in found:
                    own = nn.Parameter(parameter.detach().clone())
                    found |= {id(parameter): own, id(own): own}
                setattr(module, name, found[id(parameter)])
    return list(dict.fromkeys(found.values()))


def _have_classes(batches: Batches) -> bool:
    """Return whether the samples of the first batch have a class each, and not one a token."""
    for _, labels in batches:
        return labels is not None and labels.ndim == 1
    return False


@dataclass(frozen=True)
class _Judgement:
    """How a model does on the held-out batches.

    Args:
        kl: Mean KL to the dense model, in nats.
        loss: The same, plus the weighted cross entropy with the labels where they teach.
    """

    kl: float
    loss: float


def _judge(
    dense: nn.Module, selection: Batches | None, forward: Forward, weight: float
) -> Callable[[nn.Module], _Judgement | None]:
    """Return what judges a model on the held-out batches."""
    if selection is None:
        return lambda model: None
    logits = evaluate(dense, selection, forward=forward).logits

    def judge(model: nn.Module) -> _Judgement:
        found = evaluate(model, selection, forward=forward, dense_logits=logits)
        assert found.kl_to_dense is not None
        return _Judgement(found.kl_to_dense, found.kl_to_dense + weight * (found.loss or 0.0))

    return judge
