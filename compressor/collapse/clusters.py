"""Classes where there are no labels: k-means clusters of the pooled embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import DataError, LayerError
from compressor.forward import Batch, Batches, Forward, Inputs, batch_length, token_mask

RESTARTS = 4
"""Starts of k-means; the one with the least within-cluster variation is taken."""


@dataclass(frozen=True)
class ClusteredBatches:
    """Batches whose labels are cluster numbers.

    Args:
        batches: The batches without labels.
        labels: Cluster of each sample [N], in their order.
    """

    batches: Batches
    labels: Tensor

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, clusters [B])."""
        start = 0
        for inputs, _ in self.batches:
            stop = start + batch_length(inputs)
            if stop > len(self.labels):
                raise DataError(
                    f"The batches hold more than the {len(self.labels)} samples that were "
                    "clustered: give batches that are the same each time they are read."
                )
            yield inputs, self.labels[start:stop]
            start = stop


def cluster_labels(
    model: nn.Module, batches: Batches, layer: str, clusters: int, *, forward: Forward, seed: int
) -> ClusteredBatches:
    """Return the batches labelled by clusters of one layer's pooled output.

    Args:
        model: The dense model, in eval mode.
        batches: Batches without labels.
        layer: Module whose output, averaged over tokens or positions, is clustered.
        clusters: Number of clusters wanted; at most half the samples are used.
        forward: How to call the model.
        seed: Seed of k-means.

    Raises:
        DataError: If there is no batch.
        LayerError: If the layer is not called, its output does not belong to samples, or holds NaN
            or Inf.
    """
    calls: list[Tensor] = []
    batch: Inputs = ()

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        # Pooled at once: the model may overwrite its output, for instance by an in-place ReLU.
        # Convolutions have their features first, everything else has them last.
        rows = output.movedim(1, -1) if isinstance(module, nn.Conv2d) else output
        calls.append(_pool(layer, rows, batch_length(batch), token_mask(batch)))

    pooled: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        # Not inference mode: what the model caches here, a backward pass may need later.
        with torch.no_grad():
            for batch, _ in batches:
                calls.clear()
                forward(model, batch)
                if not calls:
                    raise LayerError(layer, "it is not called, and has no output to cluster")
                pooled.append(torch.stack(calls).mean(0).cpu())
    finally:
        handle.remove()
    if not pooled:
        raise DataError("There is no calibration data: no batch was given.")
    embeddings = torch.cat(pooled)
    if not bool(torch.isfinite(embeddings).all()):
        raise LayerError(layer, "its output holds NaN or Inf, and cannot be clustered")
    return ClusteredBatches(batches, kmeans(embeddings, clusters, seed=seed))


def kmeans(embeddings: Tensor, clusters: int, *, seed: int) -> Tensor:
    """Return the cluster [N] of each embedding [N, D], by scikit-learn's k-means.

    Args:
        embeddings: One row a sample.
        clusters: Number of clusters; at most half the samples, at least one.
        seed: Seed of the starts.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    clusters = max(1, min(clusters, len(embeddings) // 2))
    with warnings.catch_warnings():
        # Fewer distinct points than clusters is a legitimate, fully collapsed answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=RESTARTS, random_state=seed).fit_predict(
            embeddings.double().numpy()
        )
    return torch.from_numpy(found.astype(np.int64))


def _pool(layer: str, output: Tensor, samples: int, mask: Tensor | None) -> Tensor:
    """Return the mean output [B, n] of each sample over its real tokens or positions.

    Args:
        layer: The layer's name.
        output: Its output [B, …, n] or [B·T, n].
        samples: Number of samples B.
        mask: Which of [B, T] tokens are real, where inputs carry it.
    """
    if output.ndim < 2 or len(output) % samples:
        shape = tuple(output.shape)
        raise LayerError(layer, f"its output {shape} does not belong to {samples} samples")
    rows = output.reshape(samples, -1, output.shape[-1]).float()  # (B, T, n)
    if mask is None or mask.shape != rows.shape[:2]:
        return rows.mean(1)
    weight = mask.to(rows)[..., None]
    return (rows * weight).sum(1) / weight.sum(1).clamp_min(1)
