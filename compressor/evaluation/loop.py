"""Running a model over labelled batches and comparing it with the dense model's logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import DataError, ModelError
from compressor.evaluation.metrics.metric import Integers, Predictions, condensed, joined
from compressor.evaluation.tokens import TokenLogits, TokenScores
from compressor.forward import Batch, Batches, Forward, batch_length
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward, forward_for


@dataclass(frozen=True)
class ClassCount:
    """Samples of one class, and how many of them were classified correctly."""

    samples: int
    correct: int


@dataclass(frozen=True)
class Evaluation:
    """What one pass over labelled batches found.

    Args:
        samples: Number of samples seen.
        accuracy: Share of samples whose largest logit is their label, or None without labels.
        loss: Mean cross entropy in nats, or None without labels.
        kl_to_dense: Mean KL(dense ‖ this) of the class distributions in nats, or None.
        agreement: Share of samples on which this and the dense model predict alike, or None.
        logits: Logits [N, C] in float32 on the CPU, in the batches' order; of a model that predicts
            tokens, what makes them again.
        tokens: Tokens predicted, where the model predicts tokens: accuracy, loss, KL and agreement
            are then means over tokens, and samples are windows.
        per_class: Counts of each of the C classes; empty without labels.
        labels: The true classes [N], or None without labels or where tokens are predicted.
        predictions: What was predicted of each sample, or of each token; None without labels.
    """

    samples: int
    accuracy: float | None
    loss: float | None
    kl_to_dense: float | None
    agreement: float | None
    logits: Tensor | TokenLogits = field(repr=False)
    tokens: int | None = None
    per_class: tuple[ClassCount, ...] = field(default=(), repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    predictions: Predictions | None = field(default=None, repr=False)

    @property
    def classes(self) -> Integers:
        """The likeliest class of each sample, or token of each position."""
        if self.predictions is not None:
            return self.predictions.classes
        assert isinstance(self.logits, Tensor)
        found: Integers = self.logits.argmax(1).cpu().numpy()
        return found


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    forward: Forward | None = None,
    dense_logits: Tensor | TokenLogits | None = None,
    progress: Progress = SILENT,
    description: str = "evaluate",
    total: int | None = None,
) -> Evaluation:
    """Run ``model`` in eval mode over ``batches`` and score it.

    Args:
        model: Any module whose output holds class logits [B, C], or logits of tokens [B, T, V];
            the mode of each of its modules is restored.
        batches: Batches (inputs, labels [B]); labels None in all of them leaves accuracy and loss
            out. Of models that predict tokens: labels [B, T], the token that the logits at each
            position predict, negative where none is.
        forward: How to call the model; None calls it as it is, on the device of its weights.
        dense_logits: The dense model's logits on the same batches, to compare with.
        progress: Told of each batch.
        description: What the progress calls this pass.
        total: Number of batches, for the progress estimate.

    Raises:
        DataError: If there is no sample, only some batches carry labels, or a label lies outside
            [0, C).
        ModelError: If the output holds no class logits, or logits that are NaN or infinite.
        ValueError: If ``dense_logits`` has another shape than this model's.
    """
    if forward is None:
        first = next(model.parameters(), None)
        forward = forward_for(batches, torch.device("cpu") if first is None else first.device)
    if isinstance(forward, TokenForward):
        assert not isinstance(dense_logits, Tensor)
        steps = progress.track(batches, description=description, total=total)
        with _eval_mode(model), torch.no_grad():
            return _evaluate_tokens(model, steps, forward, dense_logits, progress)
    assert not isinstance(dense_logits, TokenLogits)
    logits: list[Tensor | int] = []
    labels: list[Tensor | None] = []
    group = forward.group
    with _eval_mode(model), torch.inference_mode():
        steps = progress.track(batches, description=description, total=total)
        for index, (inputs, targets) in enumerate(steps):
            mine = group.takes(index)
            logits.append(
                forward.rows(model, inputs, progress).float().cpu()
                if mine
                else batch_length(inputs)
            )
            labels.append(None if targets is None else targets.cpu())
    if not any(part if isinstance(part, int) else len(part) for part in logits):
        raise DataError("There is nothing to evaluate on: no batch holds a sample.")
    # Joined outside of inference mode: the logits are ordinary tensors from here on.
    return score(group.rows(logits), _joined(labels), dense_logits=dense_logits)


def score(
    logits: Tensor, labels: Tensor | None, *, dense_logits: Tensor | None = None
) -> Evaluation:
    """Score logits [N, C] against labels [N] and the dense model's logits [N, C].

    Everything is computed in float64.

    Raises:
        DataError: If there is not one label a sample, or one lies outside [0, C).
        ModelError: If logits are NaN or infinite.
        ValueError: If ``dense_logits`` has another shape.
    """
    _require_finite(logits)
    accuracy = loss = divergence = agreement = None
    per_class: tuple[ClassCount, ...] = ()
    predictions: Predictions | None = None
    if labels is not None:
        _require_classes(labels, logits)
        correct = logits.argmax(1) == labels
        accuracy = float(correct.double().mean())
        per_class = _count_classes(labels, correct, logits.shape[1])
        predictions = condensed(logits.double().log_softmax(1), labels.to(logits.device))
        loss = float(-predictions.true.mean())
    if dense_logits is not None:
        if dense_logits.shape != logits.shape:
            raise ValueError(
                f"the dense logits have shape {tuple(dense_logits.shape)}, these "
                f"{tuple(logits.shape)}"
            )
        divergence = kl_divergence(dense_logits, logits)
        alike = logits.argmax(1) == dense_logits.argmax(1).to(logits.device)
        agreement = float(alike.double().mean())
    return Evaluation(
        len(logits),
        accuracy,
        loss,
        divergence,
        agreement,
        logits,
        per_class=per_class,
        labels=labels,
        predictions=predictions,
    )


def kl_divergence(reference: Tensor, logits: Tensor) -> float:
    """Return the mean KL(p ‖ q) in nats of softmax distributions given by finite logits [N, C].

    In float64; a mean below zero is rounding, and 0.
    """
    log_p = reference.to(logits.device).double().log_softmax(1)
    log_q = logits.double().log_softmax(1)
    return max(float((log_p.exp() * (log_p - log_q)).sum(1).mean()), 0.0)


def _evaluate_tokens(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: TokenForward,
    dense: TokenLogits | None,
    progress: Progress,
) -> Evaluation:
    own, scores = TokenLogits(model, forward), TokenScores()
    for index, (inputs, labels) in enumerate(batches):
        if labels is None:
            raise DataError("A batch carries no labels: expected the tokens to predict, [B, T].")
        # Only the dense model's hidden states are worth keeping: others are compared with it.
        hidden = (
            own.hidden(index, inputs, progress)
            if dense is None
            else forward.rows(model, inputs, progress)
        )
        other = None if dense is None else (dense.head, dense.hidden(index, inputs, progress))
        scores.add(own.head, hidden, labels, other)
    return token_evaluation(scores, own, compared=dense is not None)


def token_evaluation(
    scores: TokenScores, logits: Tensor | TokenLogits, *, compared: bool
) -> Evaluation:
    """Return what was found of the tokens of all batches.

    Args:
        scores: Of each token.
        logits: What makes the logits again.
        compared: Whether the dense model's predictions were there to compare with.

    Raises:
        DataError: If there was no token to predict.
    """
    if not scores.parts:
        raise DataError("There is nothing to evaluate on: no batch holds a token to predict.")
    predictions = joined(scores.parts)
    count = len(predictions.labels)
    return Evaluation(
        samples=scores.samples,
        accuracy=float(predictions.correct.mean()),
        loss=float(-predictions.true.mean(dtype=np.float64)),
        kl_to_dense=max(scores.divergence / count, 0.0) if compared else None,
        agreement=scores.alike / count if compared else None,
        logits=logits,
        tokens=count,
        predictions=predictions,
    )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back in its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _joined(labels: list[Tensor | None]) -> Tensor | None:
    given = [part for part in labels if part is not None]
    if given and len(given) < len(labels):
        raise DataError(
            f"{len(labels) - len(given)} of {len(labels)} batches carry no labels: give labels for "
            "all of them, or for none."
        )
    return torch.cat(given) if given else None


def _count_classes(labels: Tensor, correct: Tensor, classes: int) -> tuple[ClassCount, ...]:
    samples = torch.bincount(labels, minlength=classes).tolist()
    hits = torch.bincount(labels[correct], minlength=classes).tolist()
    return tuple(ClassCount(*pair) for pair in zip(samples, hits, strict=True))


def _require_finite(logits: Tensor) -> None:
    bad = int((~torch.isfinite(logits).all(1)).sum())
    if bad:
        raise ModelError(
            f"The model's logits are NaN or infinite for {bad} of {len(logits)} samples. Look for "
            "NaN weights, or run the model in float32."
        )


def _require_classes(labels: Tensor, logits: Tensor) -> None:
    if labels.shape != logits.shape[:1]:
        raise DataError(
            f"Found labels of shape {tuple(labels.shape)} for {len(logits)} samples: expected one "
            "class number a sample."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise DataError(
            f"A label lies outside 0…{logits.shape[1] - 1}: found {int(labels.min())} to "
            f"{int(labels.max())}. Map the labels to the model's classes."
        )
