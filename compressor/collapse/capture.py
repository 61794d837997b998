"""One pass over labelled batches: moments of every candidate's rows, and the Fisher where asked.

Hooks feed each layer's rows to accumulators as the model runs; nothing of the activations is kept
beyond a batch except one pooled vector per sample and group. With gradients, each batch is also run
backwards once, and the same hooks see the loss's gradient at each layer's output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from compressor.collapse.fisher import FisherMoments
from compressor.collapse.loss import LossMoments
from compressor.collapse.row_energy import RowEnergies, from_named, named
from compressor.collapse.watch import LayerStatistics, Watch
from compressor.distributed import Group
from compressor.errors import DataError
from compressor.forward import Batch, Batches, Forward, batch_length
from compressor.heap import holding_freed
from compressor.layers.candidates import Candidates
from compressor.layers.kinds import LAYER_KINDS
from compressor.progress import SILENT, Progress

TEMPERATURE = 2.0
"""Softens the predictions that the Fisher is taken of.

Calibration data is mostly data the model was trained on, of which it is surer than of any other: a
few samples would then make up all of the Fisher. On MiniLM/R52 the KL on test data was 12 to 29 %
lower than at temperature 1.
"""

LEFT_OUT = 0.01
"""Share of the Fisher of single rows that rows may have together that are left out of it."""

CENTRING_BATCHES = 4
"""Most batches that the mean input, by which the Fisher's rows are centred, is taken from."""

CENTRING_SAMPLES = 64
"""Samples that are enough for it."""


@dataclass(frozen=True)
class Statistics:
    """The result of one pass.

    Args:
        layers: Statistics by layer name, in forward order; they may lie on disk, and be read each
            time.
        logits: The dense model's logits [N, C] on the calibration data, float32 on the CPU.
        labels: Label [N] of each calibration sample.
        pooled: Mean input row [N, n] of each sample by group, float32 on the CPU.
        clustered: Whether the labels are k-means clusters, for want of given ones.
        energies: How much the predictions depend on each output row of the first batches, as far
            as that was asked for; embeddings have no such rows.
    """

    layers: Mapping[str, LayerStatistics]
    logits: Tensor
    labels: Tensor
    pooled: dict[str, Tensor] = field(repr=False)
    clustered: bool = False
    energies: tuple[RowEnergies, ...] = field(default=(), repr=False)


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
    row_samples: int = 0,
    left_out: float = LEFT_OUT,
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
        row_samples: Energies of single rows are kept of whole batches until this many samples are
            reached; none without ``gradients``.
        left_out: Share of the Fisher of single rows that rows may have together that are left out.

    Raises:
        ValueError: If both ``gradients`` and ``loss`` are asked for: a pass has one backward.
        DataError: If there is no batch, or a label lies outside [0, classes).
        LayerError: If a layer's rows or gradients hold NaN or Inf.
    """
    if gradients and loss:
        raise ValueError("one pass gathers the Fisher or the loss's gradients, not both")
    watch = Watch(model, candidates, classes, forward.device)
    if loss:
        watch.gradients.loss = loss_moments(model, candidates, watch.home)
    if gradients:
        watch.gradients.fisher = fisher_moments(
            model, batches, candidates, classes, forward, left_out=left_out
        )
    generator, group = torch.Generator(), forward.group
    logits_seen: list[Tensor | int] = []
    labels_seen: list[Tensor] = []
    energies: list[RowEnergies] = []
    row_samples = row_samples if gradients else 0
    with frozen(model), watch.attached(), holding_freed():
        steps = progress.track(batches, description="measure", total=total)
        for index, (inputs, labels) in enumerate(steps):
            known = _checked_labels(labels, classes)
            watch.gradients.energies = kept_energies(
                energies, sum(map(len, labels_seen)) < row_samples
            )
            labels_seen.append(known.cpu())
            if not group.takes(index):
                watch.skip(len(known))
                logits_seen.append(len(known))
                continue
            # Seeded by batch, so that draws do not depend on which process takes it.
            generator.manual_seed(batch_seed(seed, index))
            watch.begin(inputs, known)
            with torch.set_grad_enabled(gradients or loss):
                logits = forward(model, inputs)
            if gradients:
                backward(logits, fisher_gradient(logits, generator), watch)
            if loss:
                targets = logits.detach().argmax(1) if clustered else known
                backward(logits, loss_gradient(logits, targets), watch)
            watch.end()
            logits_seen.append(logits.detach().float().cpu())
            del logits  # its graph would be there still while the next batch runs
    if not logits_seen:
        raise DataError("There is no calibration data: no batch was given.")
    watch.join_(group)
    return Statistics(
        layers=watch.statistics(),
        logits=group.rows(logits_seen),
        labels=torch.cat(labels_seen),
        pooled=watch.pooled(),
        clustered=clustered,
        energies=told_energies(energies, group),
    )


def kept_energies(found: list[RowEnergies], wanted: bool) -> RowEnergies | None:
    """Return a place at the list's end for a batch's energies; None where they are not wanted."""
    if not wanted:
        return None
    found.append({})
    return found[-1]


def told_energies(found: list[RowEnergies], group: Group) -> tuple[RowEnergies, ...]:
    """Return the energies of all batches, each of them noted by the process that took it."""
    return tuple(
        from_named(group.given(named(energies), by=index % group.size) or {})
        for index, energies in enumerate(found)
    )


def fisher_moments(
    model: nn.Module,
    batches: Batches,
    candidates: Candidates,
    classes: int,
    forward: Forward,
    *,
    rest: bool = False,
    left_out: float = 0.0,
) -> dict[str, FisherMoments]:
    """Return empty Fisher accumulators, centred by the mean input over the first batches."""
    watch = Watch(model, candidates, classes, forward.device, rest=rest, means_only=True)
    if any(layer.has_bias for layer in candidates.layers.values()):
        with torch.no_grad(), watch.attached():
            for index, (inputs, labels) in enumerate(centring_batches(batches)):
                known = _checked_labels(labels, classes)
                if not forward.group.takes(index):
                    continue
                watch.begin(inputs, known)
                forward(model, inputs)
                watch.end()
        watch.join_(forward.group)
    return centred_moments(model, watch, left_out=left_out)


def centring_batches(batches: Batches) -> Iterator[Batch]:
    """Yield the first batches, as many as rows are centred by."""
    seen = 0
    for inputs, labels in islice(batches, CENTRING_BATCHES):
        if seen >= CENTRING_SAMPLES:
            return
        yield inputs, labels
        seen += batch_length(inputs)


def centred_moments(
    model: nn.Module, watch: Watch, *, left_out: float = 0.0
) -> dict[str, FisherMoments]:
    """Return empty Fisher accumulators, centred by the mean inputs that ``watch`` has seen.

    A bias absorbs the mean exactly (b + (W − Ŵ) μ), so rows are centred where there is one.
    """
    modules = dict(model.named_modules())
    moments = {}
    for name, found in watch.statistics().items():
        weight = LAYER_KINDS.get(found.layer.kind).matrix(modules[name])
        mean = (
            found.inputs.mean.to(weight)
            if found.layer.has_bias
            else weight.new_zeros(weight.shape[1])
        )
        bias = getattr(modules[name], "bias", None)
        moments[name] = FisherMoments(
            weight,
            mean,
            bias=bias,
            home=watch.home,
            whole=found.layer.folds,
            left_out=left_out,
        )
    return moments


def loss_moments(
    model: nn.Module, candidates: Candidates, home: torch.device
) -> dict[str, LossMoments]:
    """Return empty accumulators of the calibration loss's gradients."""
    modules = dict(model.named_modules())
    return {
        name: LossMoments(LAYER_KINDS.get(layer.kind).matrix(modules[name]), home=home)
        for name, layer in candidates.layers.items()
        if not LAYER_KINDS.get(layer.kind).lookup  # [D, V] of float64 would be large
    }


def fisher_gradient(
    logits: Tensor, generator: torch.Generator, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Return a random gradient at the logits [B, C] whose covariance is the Fisher's.

    Args:
        logits: What the model predicts.
        generator: Draws the signs.
        temperature: Softens the predictions.
    """
    probabilities = (logits.detach().float() / temperature).softmax(1)
    signed = random_signs_(probabilities.sqrt(), generator)
    return signed.sub_(probabilities.mul_(signed.sum(1, keepdim=True)))


def random_signs_(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Give each entry of ``tensor`` a sign, + or − alike likely, in place.

    A vocabulary's logits are many: the signs are drawn 64 at a time, as the bits of integers.
    """
    words = torch.randint(
        -(1 << 63), (1 << 63) - 1, (-(-tensor.numel() // 64),), generator=generator
    )
    bits = np.unpackbits(words.numpy().view(np.uint8), count=tensor.numel())
    negative = torch.from_numpy(bits.view(np.bool_)).view(tensor.shape).to(tensor.device)
    return tensor.copy_(torch.where(negative, -tensor, tensor))


def loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
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


def backward(logits: Tensor, gradient: Tensor, watch: Watch) -> None:
    """Run backwards from a gradient at the logits [B, C], or at a last hidden state [B, T, D].

    Gradients of a sure model are tiny and their products denormal, which a CPU computes a hundred
    times slower; so the batch's largest is scaled to 1, and the accumulators take that out again.
    """
    if not logits.requires_grad:
        return  # no candidate lies on the path to the logits
    largest = float(gradient.abs().max())
    watch.gradients.scale = largest if largest > 0 else 1.0
    torch.autograd.backward(logits, (gradient / watch.gradients.scale).to(logits.dtype))


def batch_seed(seed: int, index: int) -> int:
    """Return a seed of its own for the batch number ``index``."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


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
def frozen(model: nn.Module) -> Iterator[None]:
    """Take no gradients of parameters: only those of activations are wanted."""
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
