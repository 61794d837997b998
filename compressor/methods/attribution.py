"""Sharing the measured KL of a compressed network between its layers.

Predicted losses are of second order, of one layer alone, and of a Kronecker model of the Fisher.
What a truncated network really loses is measured: on the straight path from the dense weights to
the truncated ones, W(s) = W + s (Ŵ − W) with s from 0 to 1, every layer gets

    A_l = ∫₀¹ ⟨∇_{W_l} KL(dense ‖ model at s), Ŵ_l − W_l⟩ ds,

and the shares add up to the KL at the end of the path (Aumann & Shapley, *Values of Non-Atomic
Games*, 1974; the same path integral as Sundararajan et al., arXiv 1703.01365, eq. 1). One backward
pass a point of the path serves all layers, where probing each layer alone takes a pass a layer;
and what layers do to each other is part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.collapse.capture import frozen
from compressor.forward import Batches, Forward, batch_length
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import structural_copy

POINTS = 2
"""Points of the Gauss–Legendre rule: exact where the KL is a polynomial of degree 4 in s."""

SAMPLES = 256
"""Calibration samples that the KL is measured on."""


def attributed_divergence(
    dense: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, Candidate],
    batches: Batches,
    *,
    forward: Forward,
    points: int = POINTS,
    samples: int = SAMPLES,
) -> dict[str, float]:
    """Return each factorized layer's share of the KL to the dense model, in nats.

    Shares may be negative: one layer's truncation may undo what another one's did.

    Args:
        dense: The dense model, in eval mode.
        compressed: It, factorized. Its BatchNorm statistics are approached along the path too.
        layers: The candidates by name.
        batches: Batches (inputs, labels); the labels are not looked at.
        forward: How to call both models.
        points: Points of the path that are looked at.
        samples: Whole batches are taken until this many samples are reached.
    """
    model = structural_copy(dense).eval()
    moving = _moving(model, compressed, layers)
    learned = [part for part in moving if isinstance(part.place, nn.Parameter)]
    nodes, weights = np.polynomial.legendre.leggauss(points)
    shares = {part.layer: 0.0 for part in learned}
    if not shares:
        return {}
    seen = 0
    with frozen(model):
        for part in learned:
            part.place.requires_grad_(True)
        for inputs, _ in batches:
            with torch.no_grad():
                expected = forward(dense, inputs).double().softmax(1)
            for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                with torch.no_grad():
                    for part in moving:
                        part.place.copy_(part.start + float(node) * part.step)
                logits = forward(model, inputs)
                # ∂/∂logits of Σ_i KL(p_i ‖ softmax(logits_i)) is softmax(logits) − p.
                gradient = logits.detach().double().softmax(1) - expected
                for part, slope in zip(learned, _slopes(logits, gradient, learned), strict=True):
                    shares[part.layer] += float(weight) * slope
            seen += batch_length(inputs)
            if seen >= samples:
                break
    return {name: share / max(seen, 1) for name, share in shares.items()}


@dataclass(frozen=True)
class _Moving:
    """A tensor on the straight way from one value to another.

    Args:
        layer: Name of its module.
        place: The tensor in the model that is moved.
        start: Its value in the dense model.
        step: What is between there and its value in the compressed model.
    """

    layer: str
    place: Tensor
    start: Tensor
    step: Tensor


def _moving(
    model: nn.Module, compressed: nn.Module, layers: Mapping[str, Candidate]
) -> list[_Moving]:
    """Give ``model`` its own copies of what differs in ``compressed``, and return them."""
    found = []
    goals = dict(compressed.named_modules())
    for name, module in model.named_modules():
        goal, parts = goals.get(name), ("running_mean", "running_var")
        if isinstance(goal, LOW_RANK_TYPES):
            goal, parts = LAYER_KINDS.get(layers[name].kind).dense(goal), ("weight", "bias")
        for part in parts:
            value, end = getattr(module, part, None), getattr(goal, part, None)
            if not isinstance(value, Tensor) or not isinstance(end, Tensor) or end is value:
                continue
            start = value.detach()
            place = start.clone()
            if isinstance(value, nn.Parameter):
                place = nn.Parameter(place)
            setattr(module, part, place)
            found.append(_Moving(name, place, start, end.detach() - start))
    return found


def _slopes(logits: Tensor, gradient: Tensor, learned: list[_Moving]) -> list[float]:
    """Return ⟨∇L, step⟩ of each tensor, given the loss's gradient at the logits."""
    # Scaled to 1 on the way: products of tiny gradients are denormal, and a hundred times slower.
    largest = float(gradient.abs().max())
    if largest == 0:
        return [0.0] * len(learned)
    found = torch.autograd.grad(
        logits,
        [part.place for part in learned],
        (gradient / largest).to(logits.dtype),
        allow_unused=True,
    )
    return [
        0.0 if slope is None else largest * float((slope.double() * part.step.double()).sum())
        for slope, part in zip(found, learned, strict=True)
    ]
