"""What the measuring pass looks at, and the pass itself in the way that a model asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from compressor.calibration import count
from compressor.collapse.block_capture import capture_blocks
from compressor.collapse.capture import Statistics, capture, frozen
from compressor.collapse.chain import Chain, find_chain
from compressor.collapse.clusters import cluster_labels
from compressor.collapse.token_capture import capture_tokens
from compressor.errors import DataError, ModelError
from compressor.forward import Batches, Forward, Inputs
from compressor.layers.candidates import Candidates, ConvForm
from compressor.layers.search import find_candidates
from compressor.progress import Progress
from compressor.tokens import TokenForward, uncached


def candidates_of(
    model: nn.Module,
    probe: Inputs,
    *,
    heads: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    conv_form: ConvForm = "channel",
) -> Candidates:
    """Return the layers that can be factorized, as `find_candidates`, of which there must be some.

    Raises:
        ModelError: If there is none.
        UsageError: If a pattern matches no layer.
    """
    candidates = find_candidates(
        model, probe, heads=heads, include=include, exclude=exclude, conv_form=conv_form
    )
    if not candidates.layers:
        raise ModelError(_nothing_to_do(candidates))
    return candidates


def reached(candidates: Candidates, statistics: Statistics) -> Candidates:
    """Return the candidates without experts that no token was routed to: nothing is known of them.

    Other layers are called on every row.
    """
    experts = [name for name, layer in candidates.layers.items() if layer.kind == "expert"]
    idle = [name for name in experts if not statistics.layers[name].inputs.total]
    return candidates.without(idle, "no calibration data reached it") if idle else candidates


def gather(
    model: nn.Module,
    batches: Batches,
    candidates: Candidates,
    *,
    classes: int | None,
    forward: Forward,
    gradients: bool,
    loss: bool = False,
    seed: int,
    probe: Inputs | None = None,
    row_samples: int = 0,
    progress: Progress,
) -> Statistics:
    """Run the measuring pass, clustering first where the batches carry no labels.

    Given a probe, a model that predicts tokens is measured block by block.
    """
    if isinstance(forward, TokenForward) and probe is not None:
        return capture_blocks(
            model,
            batches,
            candidates,
            forward=forward,
            chain=blocks_of(model, forward, probe),
            gradients=gradients,
            loss=loss,
            seed=seed,
            row_samples=row_samples,
            progress=progress,
        )
    if isinstance(forward, TokenForward):
        return capture_tokens(
            model,
            batches,
            candidates,
            forward=forward,
            gradients=gradients,
            loss=loss,
            seed=seed,
            row_samples=row_samples,
            progress=progress,
            total=count(batches),
        )
    inputs, labels = next(iter(batches))
    if classes is None:
        with torch.inference_mode():
            classes = forward(model, inputs).shape[1]
    clustered = labels is None
    if clustered:
        batches = cluster_labels(
            model, batches, list(candidates.layers)[-1], classes, forward=forward, seed=seed
        )
    statistics = capture(
        model,
        batches,
        candidates,
        classes=classes,
        forward=forward,
        gradients=gradients,
        loss=loss,
        seed=seed,
        row_samples=row_samples,
        progress=progress,
        total=count(batches),
        clustered=clustered,
    )
    present = int(torch.bincount(statistics.labels, minlength=classes).count_nonzero())
    if present < 2:
        raise DataError(
            "The calibration data holds one class only; collapse compares classes. Give data with "
            "at least two."
        )
    return statistics


def blocks_of(model: nn.Module, forward: TokenForward, probe: Inputs) -> Chain:
    """Return the blocks of a model that can be measured one by one.

    Args:
        model: The dense model, in eval mode.
        forward: How to call it.
        probe: Inputs of a small batch.

    Raises:
        ModelError: If it has none.
    """
    with frozen(model), uncached(model):
        return find_chain(model, partial(forward, model, probe))


def _nothing_to_do(candidates: Candidates) -> str:
    reasons = Counter(candidates.left_dense.values())
    listed = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(5))
    found = f" Left dense: {listed}." if listed else " It has no linear layer or convolution."
    return f"No layer of the model can be factorized.{found} --include takes further layers."
