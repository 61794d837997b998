"""One pass over labelled batches: moments of every candidate's rows, and the Fisher where asked.

Hooks feed each layer's rows to accumulators as the model runs; nothing of the activations is kept
beyond a batch except one pooled vector per sample and group. With gradients, each batch is also run
backwards once, and the same hooks see the loss's gradient at each layer's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.collapse.moments import ClassMoments, gram
from compressor.errors import DataError, LayerError
from compressor.forward import Batches, Forward, Inputs, batch_length, token_mask
from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.kinds import LAYER_KINDS, LayerKind
from compressor.progress import SILENT, Progress


@dataclass(frozen=True)
class LayerStatistics:
    """What the pass gathered for one candidate with m outputs and n inputs.

    Args:
        layer: The candidate.
        inputs: Class moments of its input rows, scatter [n, n] included; shared by its group.
        outputs: Class moments of its output rows, without scatter.
        output_gradient: F [m, m] = E over samples of Σ over positions δδᵀ, where δ is the gradient
            of the loss at the output; None without gradients.
        weighted_inputs: Class moments of the input rows, each counted by ‖δ‖² at its output; None
            without gradients.
    """

    layer: Candidate
    inputs: ClassMoments
    outputs: ClassMoments
    output_gradient: Tensor | None = None
    weighted_inputs: ClassMoments | None = None


@dataclass(frozen=True)
class Statistics:
    """The result of one pass.

    Args:
        layers: Statistics by layer name, in forward order.
        logits: The dense model's logits [N, C] on the calibration data, float32 on the CPU.
        labels: Label [N] of each calibration sample.
        pooled: Mean input row [N, n] of each sample by group, float32 on the CPU.
        clustered: Whether the labels are k-means clusters, for want of given ones.
    """

    layers: dict[str, LayerStatistics]
    logits: Tensor
    labels: Tensor
    pooled: dict[str, Tensor] = field(repr=False)
    clustered: bool = False


def capture(
    model: nn.Module,
    batches: Batches,
    candidates: Candidates,
    *,
    classes: int,
    forward: Forward,
    gradients: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
    total: int | None = None,
    clustered: bool = False,
) -> Statistics:
    """Run the dense model over labelled batches and gather statistics for every candidate.

    With ``gradients``, the loss is −log p(y|x) with y following the model's own predictions, so
    that E[δδᵀ] is the true Fisher and not the empirical one. Instead of drawing one label per
    sample, the gradient at the logits is u = √p ∘ ε − p (√p·ε) with random signs ε: it has the
    covariance diag(p) − ppᵀ that drawn labels give, with far less variance where the model is
    sure of itself, because each sample contributes its own share and not a rare event.

    Args:
        model: The dense model, in eval mode.
        batches: Batches of (inputs, labels [B]); labels in [0, classes).
        candidates: The layers to watch.
        classes: Number of classes C that labels count.
        forward: How to call the model.
        gradients: Gather the Fisher too.
        seed: Seed of the random signs.
        progress: Told of each batch.
        total: Number of batches, for the progress estimate.
        clustered: Whether the labels are k-means clusters; only passed on.

    Raises:
        DataError: If there is no batch, or a label lies outside [0, classes).
        LayerError: If a layer's rows hold NaN or Inf.
    """
    watch = _Watch(candidates, classes, forward.device, gradients=gradients)
    generator = torch.Generator().manual_seed(seed)
    logits_seen: list[Tensor] = []
    labels_seen: list[Tensor] = []
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)  # only gradients of activations are wanted
    try:
        with watch.attached(model):
            for inputs, labels in progress.track(batches, description="measure", total=total):
                labels = _checked_labels(labels, classes)
                watch.begin(inputs, labels)
                with torch.set_grad_enabled(gradients):
                    logits = forward(model, inputs)
                if gradients:
                    _backward(logits, generator)
                watch.end()
                logits_seen.append(logits.detach().float().cpu())
                labels_seen.append(labels.cpu())
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
    if not logits_seen:
        raise DataError("There is no calibration data: no batch was given.")
    return Statistics(
        layers=watch.statistics(),
        logits=torch.cat(logits_seen),
        labels=torch.cat(labels_seen),
        pooled=watch.pooled(),
        clustered=clustered,
    )


def _backward(logits: Tensor, generator: torch.Generator) -> None:
    """Run backwards from a random gradient at the logits whose covariance is the Fisher's."""
    if not logits.requires_grad:
        return  # no candidate lies on the path to the logits
    probabilities = logits.detach().double().softmax(1) if logits.device.type != "mps" else (
        logits.detach().softmax(1)
    )
    signs = torch.randint(0, 2, logits.shape, generator=generator).to(probabilities) * 2 - 1
    roots = probabilities.sqrt()
    gradient = roots * signs - probabilities * (roots * signs).sum(1, keepdim=True)
    logits.backward(gradient.to(logits.dtype))


def _checked_labels(labels: Tensor | None, classes: int) -> Tensor:
    if labels is None:
        raise DataError("The calibration batches carry no labels; cluster them first.")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"A label lies outside 0…{classes - 1}: found {int(labels.min())} to "
            f"{int(labels.max())}. Map the labels to the model's classes."
        )
    return labels


class _Watch:
    """The hooks of one pass and the accumulators they feed."""

    def __init__(
        self, candidates: Candidates, classes: int, device: torch.device, *, gradients: bool
    ) -> None:
        self._candidates = candidates
        self._classes = classes
        # MPS has no float64; its moments are kept on the CPU.
        self._home = torch.device("cpu") if device.type == "mps" else device
        self._gradients = gradients
        self._kinds: dict[str, LayerKind] = dict(LAYER_KINDS.items())
        self._groups = {
            group: ClassMoments(classes, members[0].shape[1], device=self._home)
            for group, members in candidates.groups().items()
        }
        self._outputs = {
            name: ClassMoments(classes, layer.shape[0], scatter=False, device=self._home)
            for name, layer in candidates.layers.items()
        }
        self._fisher: dict[str, _GradientMoments] = {}
        if gradients:
            self._fisher = {
                name: _GradientMoments(classes, *layer.shape, device=self._home)
                for name, layer in candidates.layers.items()
            }
        self._pooled: dict[str, list[Tensor]] = {group: [] for group in self._groups}
        self._pooling: dict[str, tuple[Tensor, Tensor]] = {}
        self._samples = 0
        self._labels = torch.empty(0)
        self._mask: Tensor | None = None

    def attached(self, model: nn.Module) -> _Attached:
        """Return a context in which the hooks are on ``model``."""
        modules = dict(model.named_modules())
        return _Attached(
            [(modules[name], self._hook(layer)) for name, layer in self._candidates.layers.items()]
        )

    def begin(self, inputs: Inputs, labels: Tensor) -> None:
        """Start a batch."""
        self._labels = labels.to(self._home)
        self._mask = token_mask(inputs)
        self._samples += batch_length(inputs)

    def end(self) -> None:
        """Finish a batch."""
        for group, (total, count) in self._pooling.items():
            self._pooled[group].append((total / count.clamp_min(1)[:, None]).float().cpu())
        self._pooling = {}

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return what was gathered, by layer."""
        found = {}
        for name, layer in self._candidates.layers.items():
            fisher = self._fisher.get(name)
            found[name] = LayerStatistics(
                layer=layer,
                inputs=self._groups[layer.group],
                outputs=self._outputs[name],
                **({} if fisher is None else fisher.result(self._samples)),
            )
        return found

    def pooled(self) -> dict[str, Tensor]:
        """Return the mean row of each sample by group."""
        return {group: torch.cat(parts) for group, parts in self._pooled.items() if parts}

    def _hook(self, layer: Candidate) -> Callable[..., Any]:
        kind = self._kinds[layer.kind]
        leads = layer.group == layer.name

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            samples = len(self._labels)
            rows = kind.rows(module, args[0].detach(), samples)
            if rows is None:
                raise LayerError(layer.name, "its input rows do not belong to samples")
            labels, keep = self._row_labels(rows)
            out = kind.output_rows(module, output.detach(), samples)
            try:
                if leads:
                    self._groups[layer.group].update(_kept(rows, keep).to(self._home), labels)
                self._outputs[layer.name].update(_kept(out, keep).to(self._home), labels)
            except ValueError as error:
                raise LayerError(layer.name, str(error)) from error
            if leads:
                self._pool(layer.group, rows, keep)
            if self._gradients:
                if not output.requires_grad:
                    output.requires_grad_()
                output.register_hook(
                    self._gradient_hook(layer, kind, module, rows, keep, labels)
                )

        return hook

    def _gradient_hook(
        self,
        layer: Candidate,
        kind: LayerKind,
        module: nn.Module,
        rows: Tensor,
        keep: Tensor | None,
        labels: Tensor,
    ) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            samples = rows.shape[0]
            everywhere = kind.all_output_rows(module, gradient, samples)
            here = kind.output_rows(module, gradient, samples)
            try:
                self._fisher[layer.name].update(
                    everywhere.reshape(-1, everywhere.shape[-1]).to(self._home),
                    _kept(here, keep).to(self._home),
                    _kept(rows, keep).to(self._home),
                    labels,
                )
            except ValueError as error:
                raise LayerError(layer.name, str(error)) from error

        return hook

    def _row_labels(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the label of each kept row, and which of [B, P] rows are kept (None: all)."""
        samples, positions, _ = rows.shape
        labels = self._labels[:, None].expand(samples, positions)
        if self._mask is None or self._mask.shape != (samples, positions):
            return labels.reshape(-1), None
        keep = self._mask.to(rows.device) != 0
        return labels[keep.to(labels.device)], keep

    def _pool(self, group: str, rows: Tensor, keep: Tensor | None) -> None:
        if keep is None:
            total, count = rows.sum(1), rows.new_full((rows.shape[0],), float(rows.shape[1]))
        else:
            total, count = (rows * keep[..., None]).sum(1), keep.sum(1).to(rows.dtype)
        before = self._pooling.get(group)
        if before is not None:  # a layer called several times in one forward
            total, count = total + before[0], count + before[1]
        self._pooling[group] = (total, count)


class _Attached:
    """Context manager that puts forward hooks on modules and takes them off again."""

    def __init__(self, hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> None:
        self._hooks = hooks
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()


class _GradientMoments:
    """Sums over one layer's output gradients δ [m], and over its input rows z [n] weighted by ‖δ‖².

    K-FAC takes E[δδᵀ ⊗ zzᵀ] apart into E[δδᵀ] ⊗ E[zzᵀ] as if both were independent. Rows that
    the loss does not depend on (all tokens but the first in a classifier's last block) then count
    as much as those that decide. Weighting by ‖δ‖² is one step of the power iteration that finds
    the nearest Kronecker product (Van Loan & Pitsianis 1993), started from F = I.
    """

    def __init__(self, classes: int, outputs: int, inputs: int, *, device: torch.device) -> None:
        self._fisher = torch.zeros(outputs, outputs, dtype=torch.float64, device=device)
        self._rows = ClassMoments(classes, inputs, device=device)

    def update(self, everywhere: Tensor, here: Tensor, rows: Tensor, labels: Tensor) -> None:
        """Add gradients [·, m] at every position, and [N, m] at the rows [N, n] with labels [N]."""
        if not torch.isfinite(everywhere).all():
            raise ValueError("the loss's gradient at its output holds NaN or Inf")
        self._fisher += gram(everywhere)
        self._rows.update(rows, labels, here.double().square().sum(1))

    def result(self, samples: int) -> dict[str, Any]:
        """Return the fields of `LayerStatistics`."""
        return {"output_gradient": self._fisher / samples, "weighted_inputs": self._rows}


def _kept(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Return the kept rows [N, n] of [B, P, n]."""
    return rows.reshape(-1, rows.shape[-1]) if keep is None else rows[keep]
