"""Running a model over labelled batches and comparing it with the dense model's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.forward import Batches, Forward
from compressor.progress import SILENT, Progress


@dataclass(frozen=True)
class Evaluation:
    """What one pass over labelled batches found.

    Args:
        samples: Number of samples seen.
        accuracy: Share of samples whose largest logit is their label, or None without labels.
        loss: Mean cross entropy in nats, or None without labels.
        kl_to_dense: Mean KL(dense ‖ this) of the class distributions in nats, or None.
        agreement: Share of samples on which this and the dense model predict alike, or None.
        logits: Logits [N, C] in float32 on the CPU, in the batches' order.
    """

    samples: int
    accuracy: float | None
    loss: float | None
    kl_to_dense: float | None
    agreement: float | None
    logits: Tensor


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    forward: Forward | None = None,
    dense_logits: Tensor | None = None,
    progress: Progress = SILENT,
    description: str = "evaluate",
    total: int | None = None,
) -> Evaluation:
    """Run ``model`` in eval mode over ``batches`` and score it.

    Args:
        model: Any module whose output holds class logits [B, C]; its mode is restored.
        batches: Batches (inputs, labels [B] or None).
        forward: How to call the model; None calls it as it is, on the device of its weights.
        dense_logits: The dense model's logits [N, C] on the same batches, to compare with.
        progress: Told of each batch.
        description: What the progress calls this pass.
        total: Number of batches, for the progress estimate.

    Raises:
        DataError: If there is no batch.
        ModelError: If the output holds no class logits.
        ValueError: If ``dense_logits`` has another shape than this model's.
    """
    if forward is None:
        first = next(model.parameters(), None)
        forward = Forward(device=torch.device("cpu") if first is None else first.device)
    training = model.training
    logits: list[Tensor] = []
    labels: list[Tensor | None] = []
    model.eval()
    try:
        with torch.inference_mode():
            for inputs, targets in progress.track(batches, description=description, total=total):
                logits.append(forward(model, inputs).float().cpu())
                labels.append(None if targets is None else targets.cpu())
    finally:
        model.train(training)
    if not logits:
        raise DataError("There is nothing to evaluate on: no batch was given.")
    known = [target for target in labels if target is not None]
    return score(
        torch.cat(logits),
        torch.cat(known) if len(known) == len(labels) else None,
        dense_logits=dense_logits,
    )


def score(
    logits: Tensor, labels: Tensor | None, *, dense_logits: Tensor | None = None
) -> Evaluation:
    """Score logits [N, C] against labels [N] and the dense model's logits [N, C].

    Raises:
        ValueError: If ``dense_logits`` has another shape.
    """
    accuracy = loss = divergence = agreement = None
    log_p = logits.double().log_softmax(1)
    if labels is not None:
        accuracy = float((logits.argmax(1) == labels).double().mean())
        loss = float(-log_p.gather(1, labels[:, None]).mean())
    if dense_logits is not None:
        if dense_logits.shape != logits.shape:
            raise ValueError(
                f"the dense logits have shape {tuple(dense_logits.shape)}, these "
                f"{tuple(logits.shape)}"
            )
        divergence = kl_divergence(dense_logits, logits)
        agreement = float((logits.argmax(1) == dense_logits.argmax(1)).double().mean())
    return Evaluation(len(logits), accuracy, loss, divergence, agreement, logits)


def kl_divergence(reference: Tensor, logits: Tensor) -> float:
    """Return the mean KL(p ‖ q) in nats of softmax distributions given by logits [N, C]."""
    log_p = reference.double().log_softmax(1)
    log_q = logits.double().log_softmax(1)
    terms = log_p.exp() * (log_p - log_q)
    return max(float(terms.where(log_p > -torch.inf, 0.0).sum(1).mean()), 0.0)
