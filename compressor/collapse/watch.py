"""The hooks of one pass over a model, and the accumulators they feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.collapse.fisher import FisherMoments, KroneckerFisher
from compressor.collapse.loss import LossGradient, LossMoments
from compressor.collapse.moments import ClassMoments
from compressor.collapse.row_energy import RowEnergies
from compressor.collapse.spans import column_sizes, squared_lengths
from compressor.distributed import ALONE, Group
from compressor.errors import LayerError
from compressor.forward import Inputs, token_mask
from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.kinds import LAYER_KINDS, LayerKind


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
        energies: Where the batch's gradients are noted, of each output row its ‖δ‖²; None: nowhere.
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
        self.fisher: dict[str, FisherMoments] = {}
        self.loss: dict[str, LossMoments] = {}
        self.gradient_scale = 1.0
        self.energies: RowEnergies | None = None
        self._followed: Counter[str] = Counter()
        self._copied: tuple[Tensor, int, Tensor] | None = None
        self._met: dict[str, list[tuple[Tensor, ...]]] = {}
        self._tapped: dict[str, Tensor] = {}
        tables = {name for name, layer in candidates.layers.items() if _looks_up(layer)}
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
        handles += [
            self._modules[name].register_forward_pre_hook(self._tapping(name))
            for name, moments in self.fisher.items()
            if not moments.takes_outputs and isinstance(self._modules[name], nn.Linear)
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
            self._add(name)
        self._followed.clear()
        self._copied = None
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
        for name in self._outputs:
            sought = self._sought(name)
            if sought is not None:
                sought.join_(group.sum_)
        if self._rest is None:
            self._pooled = {name: [group.rows(parts)] for name, parts in self._pooled.items()}

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return what was gathered, by layer."""
        return {
            name: LayerStatistics(
                layer=layer,
                inputs=self._groups[self._of[name]],
                outputs=self._outputs[name],
                fisher=self.fisher[name].result() if name in self.fisher else None,
                magnitude=self._magnitudes[self._of[name]]
                / max(self._groups[self._of[name]].total, 1.0),
                loss=self.loss[name].result() if name in self.loss else None,
                rest=self._rest is not None,
                counts=self._counts[name].double() if name in self._counts else None,
            )
            for name, layer in self._candidates.layers.items()
        }

    def pooled(self) -> dict[str, Tensor]:
        """Return the mean row of each sample by group."""
        return {group: ALONE.rows(parts) for group, parts in self._pooled.items() if parts}

    def _sought(self, name: str) -> FisherMoments | LossMoments | None:
        return self.fisher.get(name) or self.loss.get(name)

    def _tapping(self, name: str) -> Callable[..., Any]:
        """Give the layer a view of its input, whose gradient δ W is of this layer alone."""

        def pre(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            del module
            if not (torch.is_grad_enabled() and args and args[0].requires_grad):
                return None
            self._tapped[name] = args[0].view_as(args[0])
            return (self._tapped[name], *args[1:])

        return pre

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
                    kept = _kept(rows, keep).to(self.home)
                    self._groups[group].update(kept, labels)
                if self._means_only:
                    if not bool(torch.isfinite(out).all()):
                        raise ValueError("its output rows hold NaN or Inf")
                    return None
                if leads:
                    self._magnitudes[group] += column_sizes(kept)
                    self._pool(group, rows, keep, reached)
                if kind.lookup:
                    self._count(layer.name, _kept(args[0].reshape(samples, -1, 1), keep))
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
        held: Tensor | None = self._copy(inputs)
        # The hook must not hold the output that it hangs on: such a circle is never freed.
        made: Tensor | None = None
        if isinstance(moments, FisherMoments) and moments.takes_outputs and not kind.lookup:
            made = output.detach()
        written = output._version
        looked_up = output.detach() if kind.lookup else None
        self._followed[layer.name] += 1
        note = self._noting(layer, kind, module, output)
        place: list[int] = []  # of this call among those whose gradient is known
        waits = self._has_tapped(layer.name, kind, module, place)

        def gradient_hook(gradient: Tensor) -> None:
            nonlocal held, made
            assert held is not None
            note(gradient)
            met = self._met.setdefault(layer.name, [])
            place.append(len(met))
            if looked_up is not None:
                met.append(self._looked_up(kind, module, held, gradient, looked_up))
            else:
                rows = kind.all_rows(module, held, samples)
                keep = self._keep(rows, kind.reached(module))
                centred = _centred(rows, moments.centre, keep)
                gradients = kind.all_output_rows(module, gradient, samples).to(centred)
                met.append((centred, gradients))
                # What the model has written into its output in place is not W z any more.
                if (
                    made is not None
                    and made._version == written
                    and isinstance(moments, FisherMoments)
                ):
                    outputs = kind.all_output_rows(module, made, samples)
                    outputs = _centred(outputs, moments.output_at_centre, keep)
                    met[-1] = (centred, gradients, outputs)
            held = made = None  # the model's next call may come before this one's graph goes
            if not waits:
                self._add_if_last(layer.name)

        if output.requires_grad:
            output.register_hook(gradient_hook)
            return None
        # The graph begins here. A copy of the leaf may be overwritten in place by what follows.
        leaf: Any = output.detach().requires_grad_()
        leaf.register_hook(gradient_hook)
        return cast(Tensor, leaf.clone())

    def _has_tapped(
        self, name: str, kind: LayerKind, module: nn.Module, place: Sequence[int]
    ) -> bool:
        """Return whether δ W will come after the gradient of a call, and note it then.

        Args:
            name: Name of the layer.
            kind: Its kind.
            module: It.
            place: Of the call among those met, known once its gradient is.
        """
        tapped: Any = self._tapped.pop(name, None)
        if tapped is None:
            return False
        samples = len(self._labels)

        def hook(gradient: Tensor) -> None:
            met = self._met.get(name)
            if met is None:
                return  # another call has come last, and all were added
            seen = kind.all_rows(module, gradient, samples)
            if seen.dtype == met[place[0]][1].dtype:
                met[place[0]] = (*met[place[0]], seen)
            self._add_if_last(name)

        tapped.register_hook(hook)
        return True

    def _copy(self, inputs: Tensor) -> Tensor:
        """Return a copy, so that what the model later writes into its input does no harm.

        Layers that are called on one tensor, one after the other, share it.
        """
        if self._copied is not None:
            last, version, copy = self._copied
            same = last.data_ptr() == inputs.data_ptr() and last.dtype == inputs.dtype
            alike = last.shape == inputs.shape and last.stride() == inputs.stride()
            if same and alike and version == inputs._version:
                return copy
        copy = inputs.clone()
        self._copied = (inputs, inputs._version, copy)
        return copy

    def _noting(
        self, layer: Candidate, kind: LayerKind, module: nn.Module, output: Tensor
    ) -> Callable[[Tensor], None]:
        """Return what notes the energies of a call's rows from the gradient at its output."""
        if self.energies is None or kind.lookup:
            return lambda gradient: None
        samples = len(self._labels)
        calls = self.energies.setdefault(layer.name, [])
        number = len(calls)
        shape = kind.output_rows(module, output.detach(), samples).shape[:2]
        # Zero it stays where the call has no part in the logits.
        calls.append(torch.zeros(shape, dtype=torch.float64))

        def note(gradient: Tensor) -> None:
            rows = kind.output_rows(module, gradient, samples).float()
            calls[number] = squared_lengths(rows).cpu().double() * self.gradient_scale**2

        return note

    def _add_if_last(self, name: str) -> None:
        if len(self._met[name]) == self._followed[name]:
            self._add(name)

    def _add(self, name: str) -> None:
        """Add the batch's gradients at a layer, those of all its calls together.

        A sample's gradient in the weights is the sum over the calls, so that their rows are joined.
        Where tokens are predicted, the Fisher takes every position for a sample (`token_capture`
        says why).
        """
        moments = self._sought(name)
        assert moments is not None
        met = self._met.pop(name)
        known = min(map(len, met))  # of some calls the outputs may be lost
        parts = [
            torch.cat(calls, 1) if len(met) > 1 else calls[0]
            for calls in zip(*(call[:known] for call in met), strict=True)
        ]
        if self._rest is not None and isinstance(moments, FisherMoments):
            parts = [part.flatten(0, 1)[:, None] for part in parts]
        try:
            if name in self._counts:
                assert isinstance(moments, FisherMoments)
                moments.update_lookups(*parts, scale=self.gradient_scale)
            else:
                moments.update(*parts, scale=self.gradient_scale)
        except ValueError as error:
            raise LayerError(name, str(error)) from error

    def _count(self, name: str, indices: Tensor) -> None:
        found = torch.bincount(indices.flatten().to(self.home), minlength=len(self._counts[name]))
        self._counts[name] += found

    def _looked_up(
        self, kind: LayerKind, module: nn.Module, indices: Tensor, gradient: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices [B, P], gradients [B, P, D] and looked up rows [B, P, D], padding at 0."""
        samples = len(self._labels)
        rows = kind.all_output_rows(module, output, samples)
        gradients = kind.all_output_rows(module, gradient, samples).to(rows)
        keep = self._keep(rows, None)
        if keep is not None:
            gradients = gradients * keep[..., None]
        return indices.reshape(samples, -1), gradients, rows

    def _keep(self, rows: Tensor, reached: Tensor | None) -> Tensor | None:
        """Return which of the rows [B, P, n] are real tokens that reached the layer, [B, P].

        None: all.
        """
        keep = None
        if self._mask is not None and self._mask.shape == rows.shape[:2]:
            keep = self._mask.to(rows.device) != 0
        if reached is None:
            return keep
        there = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
        there.view(-1)[reached] = True
        return there if keep is None else there & keep

    def _row_labels(self, rows: Tensor, reached: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the label of each kept row, and the index of kept rows in [B·P] (None: all)."""
        if self._rest is None:
            labels = self._labels[:, None].expand(rows.shape[:2]).reshape(-1)
        elif self._labels.shape == rows.shape[:2]:
            labels = self._labels.reshape(-1)
        else:
            labels = torch.full((rows.shape[0] * rows.shape[1],), self._rest, device=self.home)
        keep = self._keep(rows, reached)
        if keep is None or bool(keep.all()):
            return labels, None
        index = torch.nonzero(keep.reshape(-1)).flatten()
        return labels[index.to(labels.device)], index

    def _pool(self, group: str, rows: Tensor, keep: Tensor | None, reached: Tensor | None) -> None:
        if self._rest is not None:
            return  # a window of tokens has no class of its own
        mask = None if keep is None else self._keep(rows, reached)
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


def _centred(rows: Tensor, centre: Tensor, keep: Tensor | None) -> Tensor:
    """Return rows [B, P, k] less a centre [k], and zero where they are not to be kept."""
    centred = rows - centre.to(rows)
    if keep is not None:
        centred *= keep[..., None]
    return centred


def _looks_up(layer: Candidate) -> bool:
    return LAYER_KINDS.get(layer.kind).lookup


def _classes(moments: ClassMoments, rest: bool) -> ClassMoments:
    return moments.first(len(moments.counts) - 1) if rest else moments


def _kept(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the kept rows [N, n] of [B, P, n]."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat if index is None else flat.index_select(0, index)
