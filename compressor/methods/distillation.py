"""The loss of learning from a dense model, and its gradients (Hinton et al., arXiv 1503.02531).

    T² KL(softmax(z_dense / T) ‖ softmax(z / T)) − w log softmax(z)_y,

section 2 there: predictions softened by the temperature T, and the label y where a sample has a
class. It is a mean over samples, or over the tokens that are predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError
from compressor.forward import Forward, Inputs
from compressor.tokens import Head, TokenForward


def learn(
    model: nn.Module,
    dense: nn.Module,
    inputs: Inputs,
    labels: Tensor | None,
    *,
    forward: Forward,
    temperature: float,
    label_weight: float,
) -> Tensor:
    """Add the loss's gradients to those of the model's parameters, and return the loss.

    Args:
        model: What learns.
        dense: What it learns from.
        inputs: One batch.
        labels: Classes [B], or None; of models that predict tokens [B, T], negative where none is
            predicted, and only asked where.
        forward: How to call both.
        temperature: T.
        label_weight: w; 0 leaves the classes out.

    Raises:
        DataError: If there are no labels and they are needed, or one is no class of the model.
    """
    with torch.no_grad():
        target = forward(dense, inputs)
    given = forward(model, inputs)
    if isinstance(forward, TokenForward):
        if labels is None:
            raise DataError("A batch carries no labels: expected the tokens to predict [B, T].")
        asked = (labels >= 0).to(given.device)
        heads = Head(model), Head(dense)
        return _learn_tokens(given[asked], target[asked], *heads, temperature=temperature)
    loss = softened_divergence(given, target, temperature)
    if label_weight:
        loss = loss + label_weight * functional.cross_entropy(
            given.float(), _classes(labels, given)
        )
    torch.autograd.backward(loss)
    return loss.detach()


def softened_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return T² KL(softmax(target/T) ‖ softmax(logits/T)), the mean over rows [N, C]."""
    return temperature**2 * functional.kl_div(
        (logits.float() / temperature).log_softmax(1),
        (target.float() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def _learn_tokens(
    rows: Tensor, others: Tensor, head: Head, dense_head: Head, *, temperature: float
) -> Tensor:
    """Learn at rows [N, D] of the last hidden states, with the logits of a chunk at a time."""
    leaves = rows.detach().requires_grad_()
    total = torch.zeros((), device=rows.device)
    for part in head.chunks(leaves):
        with torch.no_grad():
            target = dense_head(others[part])
        share = len(target) / len(rows)
        loss = share * softened_divergence(head(leaves[part]), target, temperature)
        torch.autograd.backward(loss)
        total += loss.detach()
    if rows.requires_grad and leaves.grad is not None:
        torch.autograd.backward(rows, leaves.grad)
    return total


def _classes(labels: Tensor | None, logits: Tensor) -> Tensor:
    if labels is None:
        raise DataError("Some batches to recover on have no labels; give all, or none.")
    labels = labels.to(logits.device, torch.int64)
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise DataError(
            f"The label {int(wrong[0])} is none of the model's {logits.shape[1]} classes. Labels "
            "count them from 0."
        )
    return labels
