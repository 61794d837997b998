"""Classes where there are no labels: k-means clusters of the pooled embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.forward import Batch, Batches, Forward, token_mask

RESTARTS = 4


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
        for (inputs, _), size in zip(self.batches, self._sizes(), strict=True):
            yield inputs, self.labels[start : start + size]
            start += size

    def _sizes(self) -> list[int]:
        from compressor.forward import batch_length

        return [batch_length(inputs) for inputs, _ in self.batches]


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
    """
    pooled: list[Tensor] = []
    masks: list[Tensor | None] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        pooled.append(_pool(output, masks[-1]).float().cpu())

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        with torch.inference_mode():
            for inputs, _ in batches:
                masks.append(token_mask(inputs))
                forward(model, inputs)
    finally:
        handle.remove()
    return ClusteredBatches(batches, kmeans(torch.cat(pooled), clusters, seed=seed))


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


def _pool(output: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B, n] means over tokens [B, T, n] or positions [B, n, H, W]."""
    if output.ndim == 4:
        return output.flatten(2).mean(2)
    if output.ndim == 3:
        if mask is not None and mask.shape == output.shape[:2]:
            weight = mask.to(output)[..., None]
            return (output * weight).sum(1) / weight.sum(1).clamp_min(1)
        return output.mean(1)
    return output
