"""Running a model over labelled batches and comparing it with the dense model's logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

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
) -> Evaluation:
    """Run ``model`` in eval mode over ``batches`` and score it."""
    raise NotImplementedError
