"""Scoring models that predict tokens, and comparing them with the dense model, in chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.errors import DataError, ModelError
from compressor.evaluation.metrics.metric import Predictions, condensed
from compressor.forward import Inputs
from compressor.heap import trim
from compressor.progress import SILENT, Progress
from compressor.tokens import Head, TokenForward

KEPT_BYTES = 1 << 30
"""Hidden states of the dense model that are kept for comparisons; beyond, they are made again."""


class TokenLogits:
    """A model's logits on a list of batches, made anew in chunks from its last hidden states.

    Args:
        model: The model, usually the dense one that others are compared with.
        forward: How to call it.
    """

    def __init__(self, model: nn.Module, forward: TokenForward) -> None:
        self._model, self._forward = model, forward
        self._hidden: dict[int, Tensor] = {}
        self._bytes = 0
        self.head = Head(model)

    def hidden(self, index: int, inputs: Inputs, progress: Progress = SILENT) -> Tensor:
        """Return the last hidden state [B, T, D] of the batch number ``index``."""
        kept = self._hidden.get(index)
        if kept is not None:
            return kept.to(self._forward.device)
        with torch.no_grad():
            hidden = self._forward.rows(self._model, inputs, progress)
        size = hidden.numel() * hidden.element_size()
        if self._bytes + size <= KEPT_BYTES:
            self._hidden[index] = hidden.cpu()
            self._bytes += size
        return hidden


@dataclass
class TokenScores:
    """What was found of the predicted tokens, from chunk to chunk.

    Args:
        samples: Windows seen.
        alike: Tokens at which this and the dense model think the same one most likely.
        divergence: Summed KL(dense ‖ this) in nats, in float64.
        parts: The predictions of each chunk.
    """

    samples: int = 0
    alike: int = 0
    divergence: float = 0.0
    parts: list[Predictions] = field(default_factory=list)

    def add(
        self,
        head: Head,
        hidden: Tensor,
        labels: Tensor,
        dense: tuple[Head, Tensor] | None,
    ) -> None:
        """Add one batch.

        Args:
            head: The model's head.
            hidden: Its last hidden state [B, T, D].
            labels: True tokens [B, T]; negative where none is predicted.
            dense: Head and last hidden state of the dense model.

        Raises:
            DataError: If labels and predictions differ in length, or a label is no token.
            ModelError: If a logit is NaN or infinite.
        """
        if labels.shape != hidden.shape[:2]:
            raise DataError(
                f"Found labels of shape {tuple(labels.shape)} for predictions at "
                f"{tuple(hidden.shape[:2])} positions: expected one label a position."
            )
        trim()  # or the few numbers kept of each batch hold its chunks' pages in the heap
        predicted = (labels >= 0).to(hidden.device)
        rows, true = hidden[predicted], labels.to(hidden.device)[predicted]
        others = None if dense is None else dense[1][predicted]
        windows = self.samples + predicted.nonzero()[:, 0]
        self.samples += len(labels)
        for part in head.chunks(rows):
            logits = head(rows[part]).float()
            _check(logits, true[part])
            log_q = logits.log_softmax(1)
            found = condensed(log_q, true[part], windows[part])
            self.parts.append(found)
            if dense is None or others is None:
                continue
            log_p = dense[0](others[part]).float().log_softmax(1)
            self.alike += int((log_p.argmax(1).cpu().numpy() == found.classes).sum())
            gap = (log_p.exp() * (log_p - log_q)).sum(1)
            self.divergence += float(gap.double().sum())


def _check(logits: Tensor, true: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "The model's logits are NaN or infinite. Look for NaN weights, or run the model in "
            "float32."
        )
    if int(true.max()) >= logits.shape[1]:
        raise DataError(
            f"The label {int(true.max())} is no token of the model, whose vocabulary has "
            f"{logits.shape[1]}. Tokenize the data with the model's own tokenizer."
        )
