"""Training one network on the whole training set at once, with snapshots on the way.

The theory speaks of critical points of L(W) + λ/2 Σ‖W‖², so the point is to get near one: SGD with
Nesterov momentum on the full batch finds a basin, then L-BFGS goes on in it until the gradient
nearly vanishes. Weights decay, biases do not: then the gradients at a layer's output sum to zero
at a critical point, which is what makes rank K − 1 enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.neural_rank_collapse.networks import Images, cnn, mlp

Optimizer = Literal["sgd", "adamw"]
Stage = Literal["early", "long", "stationary"]

MOMENTUM, RATE, WARM_UP, LARGEST_GRADIENT = 0.9, 0.1, 100, 1.0
ADAMW_RATE = 1e-3
MEMORY = 20
"""Pairs that L-BFGS remembers."""


@dataclass(frozen=True)
class Effort:
    """How long networks are trained, in full-batch steps.

    Args:
        early: Steps after which the snapshot ``early`` is taken.
        steps: Steps of SGD or AdamW in all.
        polish: Iterations of L-BFGS after SGD.
    """

    early: int = 150
    steps: int = 2000
    polish: int = 1200


@dataclass(frozen=True)
class Cell:
    """One network to train.

    Args:
        network: ``mlp`` or ``cnn``.
        depth: Hidden layers of an MLP.
        width: Their width.
        decay: λ of SGD, or AdamW's decoupled decay.
        optimizer: Which one.
        normalized: Put BatchNorm after every hidden layer of an MLP.
        seed: Of the initial weights.
    """

    network: Literal["mlp", "cnn"]
    decay: float
    seed: int
    depth: int = 4
    width: int = 64
    optimizer: Optimizer = "sgd"
    normalized: bool = False

    @property
    def arm(self) -> str:
        """Return what it is called in figures."""
        if self.normalized:
            return "BatchNorm"
        return "AdamW" if self.optimizer == "adamw" else "plain"

    @property
    def title(self) -> str:
        """Return network and depth."""
        return "CNN" if self.network == "cnn" else f"MLP, {self.depth} hidden"

    def build(self, images: Images) -> nn.Sequential:
        """Return the untrained network."""
        torch.manual_seed(self.seed)
        if self.network == "cnn":
            return cnn(images)
        return mlp(images, depth=self.depth, width=self.width, normalized=self.normalized)


def weights_of(network: nn.Module) -> list[Tensor]:
    """Return what decays: the weights of linear layers and convolutions."""
    return [m.weight for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def train(cell: Cell, images: Images, effort: Effort) -> Iterator[tuple[Stage, nn.Sequential]]:
    """Train a cell's network; yield a copy of it in eval mode at each stage.

    With BatchNorm there is no critical point to polish towards: its outputs do not change with the
    scale of the weights before it, so that ⟨W, ∇L⟩ = 0 while ⟨W, λW⟩ > 0. AdamW's fixed points are
    not the loss's critical points either. Both stop after ``long``.
    """
    network = cell.build(images)
    weights = weights_of(network)
    decaying = {id(weight) for weight in weights}
    groups = [
        {"params": weights, "weight_decay": cell.decay},
        {"params": [p for p in network.parameters() if id(p) not in decaying], "weight_decay": 0.0},
    ]
    if cell.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=ADAMW_RATE)
    else:
        optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARM_UP) * _cosine(step / effort.steps),
    )
    network.train()
    for step in range(effort.steps):
        if step == effort.early:
            yield "early", _snapshot(network)
        optimizer.zero_grad()
        functional.cross_entropy(network(images.train), images.train_labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    yield "long", _snapshot(network)
    if cell.arm == "plain":
        _polish(network, images, weights, cell.decay, effort.polish)
        yield "stationary", _snapshot(network)


def _polish(
    network: nn.Module, images: Images, weights: list[Tensor], decay: float, iterations: int
) -> None:
    """Go on to a critical point, in float64.

    Near one a step changes the loss by less than float32 resolves, and the line search gives up.
    """
    network.double()
    inputs = images.train.double()
    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), images.train_labels)
        loss = loss + decay / 2 * sum(weight.square().sum() for weight in weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    network.float()


def _cosine(part: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(part, 1.0))


def _snapshot(network: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(network).eval()
