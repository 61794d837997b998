"""How a model fares whose weights are on disk, and how near it is to the dense one."""

from __future__ import annotations

import contextlib

import torch

from compressor.collapse.spill import HiddenStates
from compressor.evaluation.loop import Evaluation, token_evaluation
from compressor.evaluation.tokens import TokenScores
from compressor.forward import Batches
from compressor.streaming.runnable import Runnable
from compressor.tokens import Head


def scored(
    model: Runnable,
    states: HiddenStates,
    batches: Batches,
    *,
    dense: tuple[Runnable, HiddenStates] | None = None,
) -> Evaluation:
    """Score the predictions that a model makes of its last hidden states.

    Args:
        model: The model; its head is read, and nothing else.
        states: Its last hidden states.
        batches: Batches of (inputs, labels [B, T]).
        dense: The dense model and its last hidden states, to compare with; the same ``model`` where
            the head is the dense one's, so that it is in memory once.

    Raises:
        DataError: If there is no token to predict.
        ModelError: If a logit is NaN or infinite.
    """
    scores = TokenScores()
    with contextlib.ExitStack() as held, torch.no_grad():
        held.enter_context(model.residency.after())
        head = other = Head(model.model)
        if dense is not None and dense[0] is not model:
            held.enter_context(dense[0].residency.after())
            other = Head(dense[0].model)
        for index, (_, labels) in enumerate(batches):
            assert labels is not None
            compared = None if dense is None else (other, dense[1].get(index))
            scores.add(head, states.get(index), labels, compared)
    return token_evaluation(scores, torch.empty(0), compared=dense is not None)
