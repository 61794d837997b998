"""One pass over labelled batches: moments of every candidate's rows, and the Fisher where asked.

Hooks feed each layer's rows to accumulators as the model runs; nothing of the activations is kept
beyond a batch except one pooled vector per sample and group. With gradients, each batch is also run
backwards once, and the same hooks see the loss's gradient at each layer's output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.collapse.fisher import FisherMoments, KroneckerFisher
from compressor.collapse.loss import LossGradient, LossMoments
from compressor.collapse.moments import ClassMoments
from compressor.errors import DataError, LayerError
from compressor.forward import Batches, Forward, Inputs, token_mask
from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.kinds import LAYER_KINDS, LayerKind
from compressor.progress import SILENT, Progress

TEMPERATURE = 2.0
"""Softens the predictions that the Fisher is taken of.

Calibration data is mostly data the model was trained on, of which it is surer than of any other: a
few samples would then make up all of the Fisher. On MiniLM/R52 the KL on test data falls by a sixth
to a third against temperature 1.
"""

CENTRING_BATCHES = 4
"""Batches that the mean input, by which the Fisher's rows are centred, is taken from."""


@dataclass(frozen=True)
class LayerStatistics:
    """What the pass gathered for one candidate with m outputs and n inputs.

    Args:
        layer: The candidate.
        inputs: Class moments of its input rows, scatter [n, n] included; shared by its group.
        outputs: Class moments of its output rows, without scatter.
        fisher: The Fisher of its weights in Kronecker form; None without gradients.
        magnitude: Mean |z| of each input, [n].
        loss: The calibration loss's gradient in its weights; None where it was not asked for.
    """

    layer: Candidate
    inputs: ClassMoments
    outputs: ClassMoments
    fisher: KroneckerFisher | None = None
    magnitude: Tensor | None = None
    loss: LossGradient | None = None


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
    loss: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
    total: int | None = None,
    clustered: bool = False,
) -> Statistics:
    """Run the dense model over labelled batches and gather statistics for every candidate.

    With ``gradients``, the loss is −log p(y|x) with y following the model's own predictions: the
    true Fisher and not the empirical one. Instead of drawing one label per sample, the gradient at
    the logits is u = √p ∘ ε − p (√p·ε) with random signs ε. It has the covariance diag(p) − ppᵀ
    that drawn labels give, with far less variance where the model is sure of itself, because every
    sample contributes its own share and not a rare event.

    With ``loss``, the backward pass is that of the calibration loss itself, −log p(y|x) with y the
    given label; clusters are no classes of the model, so its own prediction stands in for them.

    Args:
        model: The dense model, in eval mode.
        batches: Batches of (inputs, labels [B]); labels in [0, classes).
        candidates: The layers to watch.
        classes: Number of classes C that labels count.
        forward: How to call the model.
        gradients: Gather the Fisher too.
        loss: Gather the calibration loss's own gradients instead of the Fisher.
        seed: Seed of the random signs.
        progress: Told of each batch.
        total: Number of batches, for the progress estimate.
        clustered: Whether the labels are k-means clusters.

    Raises:
        ValueError: If both ``gradients`` and ``loss`` are asked for: a pass has one backward.
        DataError: If there is no batch, or a label lies outside [0, classes).
        LayerError: If a layer's rows or gradients hold NaN or Inf.
    """
    if gradients and loss:
        raise ValueError("one pass gathers the Fisher or the loss's gradients, not both")
    watch = _Watch(model, candidates, classes, forward.device)
    if loss:
        watch.loss = _loss_moments(model, candidates, watch.home)
    if gradients:
        watch.fisher = _fisher_moments(model, batches, candidates, classes, forward)
    generator = torch.Generator().manual_seed(seed)
    logits_seen: list[Tensor] = []
    labels_seen: list[Tensor] = []
    with _frozen(model), watch.attached():
        for inputs, labels in progress.track(batches, description="measure", total=total):
            known = _checked_labels(labels, classes)
            watch.begin(inputs, known)
            with torch.set_grad_enabled(gradients or loss):
                logits = forward(model, inputs)
            if gradients:
                _backward(logits, _fisher_gradient(logits, generator), watch)
            if loss:
                targets = logits.detach().argmax(1) if clustered else known
                _backward(logits, _loss_gradient(logits, targets), watch)
            watch.end()
            logits_seen.append(logits.detach().float().cpu())
            labels_seen.append(known.cpu())
    if not logits_seen:
        raise DataError("There is no calibration data: no batch was given.")
    return Statistics(
        layers=watch.statistics(),
        logits=torch.cat(logits_seen),
        labels=torch.cat(labels_seen),
        pooled=watch.pooled(),
        clustered=clustered,
    )


def _fisher_moments(
    model: nn.Module, batches: Batches, candidates: Candidates, classes: int, forward: Forward
) -> dict[str, FisherMoments]:
    """Return empty Fisher accumulators, centred by the mean input over the first batches.

    A bias absorbs the mean exactly (b + (W − Ŵ) μ), so rows are centred where there is one.
    """
    watch = _Watch(model, candidates, classes, forward.device)
    with torch.no_grad(), watch.attached():
        for index, (inputs, labels) in enumerate(batches):
            if index == CENTRING_BATCHES:
                break
            watch.begin(inputs, _checked_labels(labels, classes))
            forward(model, inputs)
            watch.end()
    modules = dict(model.named_modules())
    moments = {}
    for name, found in watch.statistics().items():
        weight = LAYER_KINDS.get(found.layer.kind).matrix(modules[name])
        mean = found.inputs.mean.to(weight)
        moments[name] = FisherMoments(
            weight, mean if found.layer.has_bias else torch.zeros_like(mean), home=watch.home
        )
    return moments


def _loss_moments(
    model: nn.Module, candidates: Candidates, home: torch.device
) -> dict[str, LossMoments]:
    modules = dict(model.named_modules())
    return {
        name: LossMoments(LAYER_KINDS.get(layer.kind).matrix(modules[name]), home=home)
        for name, layer in candidates.layers.items()
    }


def _fisher_gradient(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random gradient at the logits [B, C] whose covariance is the Fisher's."""
    probabilities = (logits.detach().float() / TEMPERATURE).softmax(1)
    signs = torch.randint(0, 2, logits.shape, generator=generator).to(probabilities) * 2 - 1
    roots = probabilities.sqrt()
    return roots * signs - probabilities * (roots * signs).sum(1, keepdim=True)


def _loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Return p − y, the gradient of each sample's cross entropy at the logits [B, C]."""
    if labels.numel() and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"The label {int(labels.max())} is no class of the model, whose logits count "
            f"{logits.shape[1]}. Map the labels to the model's classes."
        )
    known = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    gradient = known.softmax(1)
    gradient[torch.arange(len(gradient)), labels.to(gradient.device)] -= 1
    return gradient


def _backward(logits: Tensor, gradient: Tensor, watch: _Watch) -> None:
    """Run backwards from a gradient [B, C] at the logits.

    Gradients of a sure model are tiny and their products denormal, which a CPU computes a hundred
    times slower; so the batch's largest is scaled to 1, and the accumulators take that out again.
    """
    if not logits.requires_grad:
        return  # no candidate lies on the path to the logits
    largest = float(gradient.abs().max())
    watch.gradient_scale = largest if largest > 0 else 1.0
    torch.autograd.backward(logits, (gradient / watch.gradient_scale).to(logits.dtype))


def _checked_labels(labels: Tensor | None, classes: int) -> Tensor:
    if labels is None:
        raise DataError("The calibration batches carry no labels; cluster them first.")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"A label lies outside 0…{classes - 1}: found {int(labels.min())} to "
            f"{int(labels.max())}. Map the labels to the model's classes."
        )
    return labels


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Take no gradients of parameters: only those of activations are wanted."""
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


class _Watch:
    """The hooks of one pass and the accumulators they feed."""

    def __init__(
        self, model: nn.Module, candidates: Candidates, classes: int, device: torch.device
    ) -> None:
        self._modules = dict(model.named_modules())
        self._candidates = candidates
        # MPS has no float64; its moments are kept on the CPU.
        self.home = torch.device("cpu") if device.type == "mps" else device
        self.fisher: dict[str, FisherMoments] = {}
        self.loss: dict[str, LossMoments] = {}
        self.gradient_scale = 1.0
        self._followed: Counter[str] = Counter()
        self._met: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._groups = {
            group: ClassMoments(classes, members[0].shape[1], device=self.home)
            for group, members in candidates.groups().items()
        }
        self._outputs = {
            name: ClassMoments(classes, layer.shape[0], scatter=False, device=self.home)
            for name, layer in candidates.layers.items()
        }
        self._magnitudes = {
            group: torch.zeros(moments.means.shape[1], dtype=torch.float64, device=self.home)
            for group, moments in self._groups.items()
        }
        self._pooled: dict[str, list[Tensor]] = {group: [] for group in self._groups}
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
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, inputs: Inputs, labels: Tensor) -> None:
        """Start a batch."""
        self._labels = labels.to(self.home)
        self._mask = token_mask(inputs)

    def end(self) -> None:
        """Finish a batch."""
        for name in list(self._met):  # not every call had a part in the logits
            moments = self._sought(name)
            assert moments is not None
            self._add(name, moments)
        self._followed.clear()
        for group, (total, count) in self._pooling.items():
            self._pooled[group].append((total / count.clamp_min(1)[:, None]).float().cpu())
        self._pooling = {}

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return what was gathered, by layer."""
        return {
            name: LayerStatistics(
                layer=layer,
                inputs=self._groups[layer.group],
                outputs=self._outputs[name],
                fisher=self.fisher[name].result() if name in self.fisher else None,
                magnitude=self._magnitudes[layer.group] / max(self._groups[layer.group].total, 1.0),
                loss=self.loss[name].result() if name in self.loss else None,
            )
            for name, layer in self._candidates.layers.items()
        }

    def pooled(self) -> dict[str, Tensor]:
        """Return the mean row of each sample by group."""
        return {group: torch.cat(parts) for group, parts in self._pooled.items() if parts}

    def _sought(self, name: str) -> FisherMoments | LossMoments | None:
        return self.fisher.get(name) or self.loss.get(name)

    def _hook(self, layer: Candidate) -> Callable[..., Any]:
        kind = LAYER_KINDS.get(layer.kind)
        leads = layer.group == layer.name

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            samples = len(self._labels)
            rows = kind.rows(module, args[0].detach(), samples)
            if rows is None:
                raise LayerError(layer.name, "its input rows do not belong to samples")
            labels, keep = self._row_labels(rows)
            out = kind.output_rows(module, output.detach(), samples)
            try:
                if leads:
                    kept = _kept(rows, keep).to(self.home)
                    self._groups[layer.group].update(kept, labels)
                    self._magnitudes[layer.group] += kept.abs().sum(0, dtype=torch.float64)
                    self._pool(layer.group, rows, keep)
                self._outputs[layer.name].update(_kept(out, keep).to(self.home), labels)
            except ValueError as error:
                raise LayerError(layer.name, str(error)) from error
            moments = self._sought(layer.name)
            if moments is None:
                return None
            return self._follow(
                layer, kind, moments, module, inputs=args[0].detach(), output=output
            )

        return hook

    def _follow(
        self,
        layer: Candidate,
        kind: LayerKind,
        moments: FisherMoments | LossMoments,
        module: nn.Module,
        *,
        inputs: Tensor,
        output: Any,
    ) -> Tensor | None:
        """Have the gradient at the output meet the input rows; return the output to go on with."""
        if not torch.is_grad_enabled():
            raise LayerError(
                layer.name,
                "the model calls it under torch.no_grad, so its part in the loss is unknown. "
                "Measure without gradients: --no-gradients, or measure(..., gradients=False).",
            )
        samples = len(self._labels)
        # A copy: what the model later writes into its input in place does no harm.
        held = inputs.clone()
        self._followed[layer.name] += 1

        def gradient_hook(gradient: Tensor) -> None:
            rows = kind.all_rows(module, held, samples)
            centred = rows - moments.centre.to(rows)
            keep = self._keep(rows)
            if keep is not None:
                centred *= keep[..., None]
            met = self._met.setdefault(layer.name, [])
            met.append((centred, kind.all_output_rows(module, gradient, samples).to(centred)))
            if len(met) == self._followed[layer.name]:
                self._add(layer.name, moments)

        if output.requires_grad:
            output.register_hook(gradient_hook)
            return None
        # The graph begins here. A copy of the leaf may be overwritten in place by what follows.
        leaf: Any = output.detach().requires_grad_()
        leaf.register_hook(gradient_hook)
        return cast(Tensor, leaf.clone())

    def _add(self, name: str, moments: FisherMoments | LossMoments) -> None:
        """Add the batch's gradients at a layer, those of all its calls together.

        A sample's gradient in the weights is the sum over the calls, so that their rows are joined.
        """
        rows, gradients = zip(*self._met.pop(name), strict=True)
        try:
            moments.update(
                rows[0] if len(rows) == 1 else torch.cat(rows, 1),
                gradients[0] if len(rows) == 1 else torch.cat(gradients, 1),
                scale=self.gradient_scale,
            )
        except ValueError as error:
            raise LayerError(name, str(error)) from error

    def _keep(self, rows: Tensor) -> Tensor | None:
        """Return which of the rows [B, P, n] are real tokens, [B, P]; None: all."""
        if self._mask is None or self._mask.shape != rows.shape[:2]:
            return None
        return self._mask.to(rows.device) != 0

    def _row_labels(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the label of each kept row, and the index of kept rows in [B·P] (None: all)."""
        labels = self._labels[:, None].expand(rows.shape[:2]).reshape(-1)
        keep = self._keep(rows)
        if keep is None or bool(keep.all()):
            return labels, None
        index = torch.nonzero(keep.reshape(-1)).flatten()
        return labels[index.to(labels.device)], index

    def _pool(self, group: str, rows: Tensor, keep: Tensor | None) -> None:
        mask = None if keep is None else self._keep(rows)
        if mask is None:
            total, count = rows.sum(1), rows.new_full((rows.shape[0],), float(rows.shape[1]))
        else:
            weight = mask.to(rows)
            total, count = (weight[:, None] @ rows).squeeze(1), weight.sum(1)
        before = self._pooling.get(group)
        if before is not None:  # a layer called several times in one forward
            total, count = total + before[0], count + before[1]
        self._pooling[group] = (total, count)


def _kept(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the kept rows [N, n] of [B, P, n]."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat if index is None else flat.index_select(0, index)
