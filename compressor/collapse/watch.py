"""The hooks of one pass over a model, and the accumulators they feed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.fisher import KroneckerFisher
from compressor.collapse.gradient_watch import GradientWatch
from compressor.collapse.loss import LossGradient
from compressor.collapse.moments import ClassMoments
from compressor.collapse.real_rows import kept, real_rows
from compressor.collapse.spans import column_sizes
from compressor.distributed import ALONE, Group
from compressor.errors import LayerError
from compressor.forward import Inputs, token_mask
from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.kinds import LAYER_KINDS


@dataclass(frozen=True)
class LayerStatistics:
    """What the pass gathered for one candidate with m outputs and n inputs.

    Args:
        layer: The candidate.
        inputs: Class moments of its input rows, scatter [n, n] included; shared by its group. Of an
            embedding, whose inputs are indices, those of the rows [D] that it looks up.
        outputs: Class moments of its output rows, without scatter.
        fisher: The Fisher of its weights in Kronecker form; None without gradients.
        magnitude: Mean |z| of each input, [n].
        loss: The calibration loss's gradient in its weights; None where it was not asked for.
        rest: Whether the last class gathers rows that belong to no class (rare next tokens):
            covariances are of all rows, collapse is of the classes before it.
        counts: How often each index was looked up, [V]; embeddings only.
        head: Statistics of the output layer that shares an embedding's table.
    """

    layer: Candidate
    inputs: ClassMoments
    outputs: ClassMoments
    fisher: KroneckerFisher | None = None
    magnitude: Tensor | None = None
    loss: LossGradient | None = None
    rest: bool = False
    counts: Tensor | None = None
    head: LayerStatistics | None = None

    @property
    def input_classes(self) -> ClassMoments:
        """Moments of the input rows that collapse is measured on."""
        return _classes(self.inputs, self.rest)

    @property
    def output_classes(self) -> ClassMoments:
        """Moments of the output rows that collapse is measured on."""
        return _classes(self.outputs, self.rest)


class Watch:
    """The hooks of one pass and the accumulators they feed.

    Args:
        model: The dense model.
        candidates: The layers to watch.
        classes: Number of classes C, the rest included.
        device: Where the model runs.
        rest: Whether the last class gathers rows that belong to no class. Labels are then of each
            position, [B, T], and rows of another length (an encoder's) belong to the rest.
        means_only: Gather nothing but the class means of inputs.

    Attributes:
        gradients: What the backward half of the pass feeds.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        classes: int,
        device: torch.device,
        *,
        rest: bool = False,
        means_only: bool = False,
    ) -> None:
        self._means_only = means_only
        self._modules = dict(model.named_modules())
        self._candidates = candidates
        self._rest = classes - 1 if rest else None
        self.home = home(device)
        tables = {name for name, layer in candidates.layers.items() if _looks_up(layer)}
        self.gradients = GradientWatch(self._modules, tables, by_token=rest)
        # Embeddings on the same indices look up rows of their own: each is a group by itself.
        self._of = {n: n if n in tables else c.group for n, c in candidates.layers.items()}
        self._groups = {
            group: ClassMoments(
                classes,
                layer.shape[0 if group in tables else 1],
                scatter=not means_only,
                device=self.home,
            )
            for name, layer in candidates.layers.items()
            if (group := self._of[name]) == name
        }
        self._counts = {
            name: torch.zeros(candidates.layers[name].shape[1], dtype=torch.int64, device=self.home)
            for name in tables
        }
        self._outputs = {
            name: ClassMoments(classes, layer.shape[0], scatter=False, device=self.home)
            for name, layer in candidates.layers.items()
        }
        self._magnitudes = {
            group: torch.zeros(moments.means.shape[1], dtype=torch.float64, device=self.home)
            for group, moments in self._groups.items()
        }
        self._pooled: dict[str, list[Tensor | int]] = {group: [] for group in self._groups}
        self._pooling: dict[str, tuple[Tensor, Tensor]] = {}
        self._labels = torch.empty(0)
        self._mask: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Have the hooks on the model inside the block."""
        handles = [
            self._modules[name].register_forward_hook(self._hook(layer))
            for name, layer in self._candidates.layers.items()
        ]
        handles += self.gradients.attach()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, inputs: Inputs, labels: Tensor) -> None:
        """Start a batch."""
        self._labels = labels.to(self.home)
        self._mask = token_mask(inputs)
        self.gradients.begin(len(labels), self._mask)

    def end(self) -> None:
        """Finish a batch."""
        self.gradients.end()
        for group, (total, count) in self._pooling.items():
            self._pooled[group].append((total / count.clamp_min(1)[:, None]).float().cpu())
        self._pooling = {}

    def skip(self, samples: int) -> None:
        """Leave a batch of so many samples to another process."""
        for parts in self._pooled.values():
            parts.append(samples)

    def join_(self, group: Group) -> None:
        """Put together what all processes have gathered; each of them has to call it."""
        if group.size == 1:
            return
        for moments in self._groups.values():
            moments.join_(group.sum_)
        if self._means_only:
            return
        for moments in self._outputs.values():
            moments.join_(group.sum_)
        for tensor in (*self._magnitudes.values(), *self._counts.values()):
            group.sum_(tensor)
        self.gradients.join_(group.sum_)
        if self._rest is None:
            self._pooled = {name: [group.rows(parts)] for name, parts in self._pooled.items()}

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return what was gathered, by layer."""
        fisher, loss = self.gradients.fisher, self.gradients.loss
        return {
            name: LayerStatistics(
                layer=layer,
                inputs=self._groups[self._of[name]],
                outputs=self._outputs[name],
                fisher=fisher[name].result() if name in fisher else None,
                magnitude=self._magnitudes[self._of[name]]
                / max(self._groups[self._of[name]].total, 1.0),
                loss=loss[name].result() if name in loss else None,
                rest=self._rest is not None,
                counts=self._counts[name].double() if name in self._counts else None,
            )
            for name, layer in self._candidates.layers.items()
        }

    def pooled(self) -> dict[str, Tensor]:
        """Return the mean row of each sample by group."""
        return {group: ALONE.rows(parts) for group, parts in self._pooled.items() if parts}

    def _hook(self, layer: Candidate) -> Callable[..., Any]:
        kind = LAYER_KINDS.get(layer.kind)
        group = self._of[layer.name]
        leads = group == layer.name

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            samples = len(self._labels)
            out = kind.output_rows(module, output.detach(), samples)
            rows = out if kind.lookup else kind.rows(module, args[0].detach(), samples)
            if rows is None:
                raise LayerError(layer.name, "its input rows do not belong to samples")
            reached = kind.reached(module)
            labels, keep = self._row_labels(rows, reached)
            try:
                if leads:
                    own = kept(rows, keep).to(self.home)
                    self._groups[group].update(own, labels)
                if self._means_only:
                    if not bool(torch.isfinite(out).all()):
                        raise ValueError("its output rows hold NaN or Inf")
                    return None
                if leads:
                    self._magnitudes[group] += column_sizes(own)
                    self._pool(group, rows, keep, reached)
                if kind.lookup:
                    self._count(layer.name, kept(args[0].reshape(samples, -1, 1), keep))
                self._outputs[layer.name].update(kept(out, keep).to(self.home), labels)
            except ValueError as error:
                raise LayerError(layer.name, str(error)) from error
            return self.gradients.follow(layer, module, inputs=args[0].detach(), output=output)

        return hook

    def _count(self, name: str, indices: Tensor) -> None:
        found = torch.bincount(indices.flatten().to(self.home), minlength=len(self._counts[name]))
        self._counts[name] += found

    def _row_labels(self, rows: Tensor, reached: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the label of each kept row, and the index of kept rows in [B·P] (None: all)."""
        if self._rest is None:
            labels = self._labels[:, None].expand(rows.shape[:2]).reshape(-1)
        elif self._labels.shape == rows.shape[:2]:
            labels = self._labels.reshape(-1)
        else:
            labels = torch.full((rows.shape[0] * rows.shape[1],), self._rest, device=self.home)
        keep = real_rows(rows, reached, self._mask)
        if keep is None or bool(keep.all()):
            return labels, None
        index = torch.nonzero(keep.reshape(-1)).flatten()
        return labels[index.to(labels.device)], index

    def _pool(self, group: str, rows: Tensor, keep: Tensor | None, reached: Tensor | None) -> None:
        if self._rest is not None:
            return  # a window of tokens has no class of its own
        mask = None if keep is None else real_rows(rows, reached, self._mask)
        if mask is None:
            total, count = rows.sum(1), rows.new_full((rows.shape[0],), float(rows.shape[1]))
        else:
            weight = mask.to(rows)
            total, count = (weight[:, None] @ rows).squeeze(1), weight.sum(1)
        before = self._pooling.get(group)
        if before is not None:  # a layer called several times in one forward
            total, count = total + before[0], count + before[1]
        self._pooling[group] = (total, count)


def home(device: torch.device) -> torch.device:
    """Return where moments of a model on ``device`` are kept: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def with_heads(
    candidates: Candidates, found: Mapping[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Return statistics by candidate; an embedding's hold those of the layer tied to it.

    Args:
        candidates: The candidates.
        found: Statistics of all of them, and of the layers tied to them where those were watched.
    """
    return {
        name: replace(found[name], head=found.get(layer.tied[0])) if layer.tied else found[name]
        for name, layer in candidates.layers.items()
    }


def _looks_up(layer: Candidate) -> bool:
    return LAYER_KINDS.get(layer.kind).lookup


def _classes(moments: ClassMoments, rest: bool) -> ClassMoments:
    return moments.first(len(moments.counts) - 1) if rest else moments
