r"""What is measured of a trained network: collapse, rank, stationarity, the bound, truncation.

The loss is the mean over N samples of ℓ_i, and δ [m] is the gradient of one sample's ℓ_i at the
layer's output row, z [n] the input row; a convolution has P rows a sample, a linear layer one. With
g = ∇L + λW what is missing to a critical point,

    W = −(1/λN) Σ δ zᵀ + g/λ.

Class means of z split off a part of rank at most K, one column space of K means:

    dist(W, rank K)     ≤ (P/λ) ‖Σ_W^δ‖₂^{1/2} (tr Σ_W)^{1/2} + ‖g‖_F/λ,
    dist(W, rank K − 1) ≤ the same + (P/λ) ‖mean δ‖ ‖mean z‖,

distances in the Frobenius norm, Σ_W and Σ_W^δ the within-class covariances of rows z and δ. The
first line is METHOD's weight-side bound with the term for imperfect stationarity kept; the second
takes the means about their own mean, and its last term vanishes where biases are trained without
decay to a critical point. Both hold for any λ > 0, trained with or not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.collapse.metrics import collapse
from compressor.collapse.moments import ClassMoments
from compressor.collapse.spectra import (
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from compressor.layers.kinds import kind_of
from examples.neural_rank_collapse.networks import Images

NUMERICAL_TOLERANCE = 1e-2
"""Share of the largest singular value under which one counts as zero: training is not exact."""


@dataclass(frozen=True)
class MeasuredWeight:
    """One layer of a trained network with K classes; the module's docstring gives the formulas.

    Args:
        layer: Position among the network's layers, from 1.
        shape: (m, n).
        tcv: tr Σ_W of the input.
        tcv_relative: tr Σ_W / tr Σ_T of the input.
        nc1: tr(Σ_W Σ_B⁺)/K of the input.
        nc1_quotient: tr Σ_W / tr Σ_B of the input.
        singular_values: σ [min(m, n)], largest first.
        distances: Frobenius distance to the nearest matrix of rank K and of rank K − 1.
        stable_rank: ‖W‖_F²/‖W‖₂².
        effective_rank: exp H(σ/Σσ).
        numerical_rank: Singular values above `NUMERICAL_TOLERANCE` of the largest.
        cosine: cos(W, −∇L), 1 at a critical point.
        decay: λ in the bounds: the one trained with, or for AdamW the one that fits best.
        collapse_term: (P/λ) ‖Σ_W^δ‖₂^{1/2} (tr Σ_W)^{1/2}.
        residual_term: ‖∇L + λW‖_F/λ.
        bias_term: (P/λ) ‖mean δ‖ ‖mean z‖.
        accuracies: Test accuracy with this layer alone truncated to rank K and to K − 1.
    """

    layer: int
    shape: tuple[int, int]
    tcv: float
    tcv_relative: float | None
    nc1: float | None
    nc1_quotient: float | None
    singular_values: tuple[float, ...]
    distances: tuple[float, float]
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    cosine: float
    decay: float
    collapse_term: float
    residual_term: float
    bias_term: float
    accuracies: tuple[float, float]


@dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network.

    Args:
        train_accuracy: On the training images.
        test_accuracy: On the test images.
        loss: Mean cross entropy on the training images, in nats.
        truncated: Test accuracy with every layer truncated to rank K, and to K − 1.
        layers: In forward order.
    """

    train_accuracy: float
    test_accuracy: float
    loss: float
    truncated: tuple[float, float]
    layers: tuple[MeasuredWeight, ...]


def measured(network: nn.Sequential, images: Images, decay: float | None) -> MeasuredNetwork:
    """Measure a network in eval mode on its training images.

    Args:
        network: The trained network.
        images: What it was trained and is tested on.
        decay: λ it was trained with; None takes the one that fits each layer best.
    """
    network = copy.deepcopy(network).double()  # spectra and gradients to more than float32
    images = Images(
        images.name,
        images.train.double(),
        images.train_labels,
        images.test.double(),
        images.test_labels,
    )
    inputs, gradients, loss = _run(network, images)
    ranks = (images.classes, images.classes - 1)
    layers = [name for name, module in network.named_children() if kind_of(module) is not None]
    found = tuple(
        _layer(
            network,
            name,
            index,
            images,
            inputs=inputs[name],
            gradients=gradients[name],
            decay=decay,
        )
        for index, name in enumerate(layers, 1)
    )
    return MeasuredNetwork(
        train_accuracy=accuracy(network, images.train, images.train_labels),
        test_accuracy=accuracy(network, images.test, images.test_labels),
        loss=loss,
        truncated=(
            _accuracy_at(network, layers, ranks[0], images),
            _accuracy_at(network, layers, ranks[1], images),
        ),
        layers=found,
    )


def truncated(network: nn.Sequential, layers: list[str], rank: int) -> nn.Sequential:
    """Return a copy with the weights of ``layers`` at their nearest matrices of a rank."""
    small = copy.deepcopy(network)
    for name in layers:
        weight: Any = small.get_submodule(name).weight
        left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        values[rank:] = 0
        with torch.no_grad():
            weight.copy_((left * values @ right).reshape(weight.shape))
    return small


@torch.no_grad()
def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of inputs classified as labelled."""
    return float((network(inputs).argmax(1) == labels).double().mean())


def _accuracy_at(network: nn.Sequential, layers: list[str], rank: int, images: Images) -> float:
    return accuracy(truncated(network, layers, rank), images.test, images.test_labels)


def _run(
    network: nn.Sequential, images: Images
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return input rows [N, P, n] and output gradients δ [N, P, m] by layer, and the loss."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    value = images.train
    for name, module in network.named_children():
        kind = kind_of(module)
        if kind is not None:
            inputs[name] = kind.all_rows(module, value.detach(), len(value))
        value = module(value)
        if kind is not None:
            value.retain_grad()
            outputs[name] = value
    loss = functional.cross_entropy(value, images.train_labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients: dict[str, Tensor] = {}
    for name, output in outputs.items():
        module, gradient = network.get_submodule(name), output.grad
        kind = kind_of(module)
        assert gradient is not None
        assert kind is not None
        gradients[name] = kind.all_output_rows(module, gradient, len(gradient))
    return inputs, gradients, float(loss.detach()) / len(images.train)


def _layer(
    network: nn.Sequential,
    name: str,
    index: int,
    images: Images,
    *,
    inputs: Tensor,
    gradients: Tensor,
    decay: float | None,
) -> MeasuredWeight:
    module = network.get_submodule(name)
    kind = kind_of(module)
    assert kind is not None
    weight = kind.matrix(module)
    samples, positions, _ = inputs.shape
    labels = images.train_labels[:, None].expand(samples, positions).reshape(-1)
    rows, deltas = _moments(inputs, labels, images), _moments(gradients, labels, images)
    slope = gradients.flatten(0, 1).T @ inputs.flatten(0, 1) / samples  # ∇L [m, n]
    inner = float((weight * slope).sum())
    if decay is None:
        decay = max(-inner / float(weight.square().sum()), torch.finfo(torch.float32).tiny)
    values = singular_values(weight)
    found = collapse(rows)
    spread = float(torch.linalg.eigvalsh(deltas.within_covariance)[-1]) ** 0.5
    rank = images.classes
    return MeasuredWeight(
        layer=index,
        shape=(weight.shape[0], weight.shape[1]),
        tcv=found.tcv,
        tcv_relative=found.tcv_relative,
        nc1=found.nc1,
        nc1_quotient=found.nc1_quotient,
        singular_values=tuple(values.tolist()),
        distances=(float(values[rank:].norm()), float(values[rank - 1 :].norm())),
        stable_rank=stable_rank(values),
        effective_rank=effective_rank(values),
        numerical_rank=numerical_rank(values, NUMERICAL_TOLERANCE),
        cosine=-inner / float(weight.norm() * slope.norm()),
        decay=decay,
        collapse_term=positions / decay * spread * found.tcv**0.5,
        residual_term=float((slope + decay * weight).norm()) / decay,
        bias_term=positions / decay * float(deltas.mean.norm() * rows.mean.norm()),
        accuracies=(
            _accuracy_at(network, [name], rank, images),
            _accuracy_at(network, [name], rank - 1, images),
        ),
    )


def _moments(rows: Tensor, labels: Tensor, images: Images) -> ClassMoments:
    moments = ClassMoments(images.classes, rows.shape[-1])
    moments.update(rows.flatten(0, 1), labels)
    return moments
