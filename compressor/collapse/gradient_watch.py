"""Where the gradient at a layer's output meets the rows that the layer was called on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.collapse.fisher import FisherMoments
from compressor.collapse.loss import LossMoments
from compressor.collapse.real_rows import centred, real_rows
from compressor.collapse.row_energy import RowEnergies
from compressor.collapse.spans import squared_lengths
from compressor.errors import LayerError
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS, LayerKind


@dataclass
class _Call:
    """One call of a layer, as the backward pass comes to know it.

    Args:
        rows: What it was called on, centred [B, P, n]; indices [B, P] of an embedding.
        gradients: δ at its output, [B, P, m].
        seen: What the weights make of the larger side's rows; None where that is not known.
    """

    rows: Tensor | None = None
    gradients: Tensor | None = None
    seen: Tensor | None = None

    def taken(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return rows, gradients and seen, and hold none of them any more.

        The hooks that know the call live as long as the graph, to the end of the batch.
        """
        found = self.rows, self.gradients, self.seen
        self.rows = self.gradients = self.seen = None
        return found


@dataclass
class _Copied:
    """The tensor that layers were called on last, and the copies that were made of it.

    Args:
        inputs: The tensor.
        version: How often it had been written into.
        copies: What each copy's rows are centred by, and the copy.
    """

    inputs: Tensor
    version: int
    copies: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)

    def holds(self, inputs: Tensor) -> bool:
        """Return whether a layer is called on the same, and nothing was written into it since."""
        last = self.inputs
        same = last.data_ptr() == inputs.data_ptr() and last.dtype == inputs.dtype
        alike = last.shape == inputs.shape and last.stride() == inputs.stride()
        return same and alike and self.version == inputs._version


class GradientWatch:
    """What of a pass's backward half feeds the Fisher or the loss's gradients.

    Args:
        modules: The model's modules by name.
        tables: Names of layers whose inputs are indices.
        by_token: Whether the Fisher takes every position for a sample (`token_capture` says why).

    Attributes:
        fisher: Accumulators of the Fisher by layer.
        loss: Accumulators of the loss's gradient by layer.
        scale: What the gradients of this batch were divided by.
        energies: Where they are noted, of each output row its ‖δ‖²; None: nowhere.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], tables: Collection[str], *, by_token: bool
    ) -> None:
        self.fisher: dict[str, FisherMoments] = {}
        self.loss: dict[str, LossMoments] = {}
        self.scale = 1.0
        self.energies: RowEnergies | None = None
        self._modules, self._tables, self._by_token = modules, tables, by_token
        self._samples = 0
        self._mask: Tensor | None = None
        self._followed: Counter[str] = Counter()
        self._copied: _Copied | None = None
        self._met: dict[str, list[_Call]] = {}
        self._tapped: dict[str, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        """Put hooks before the layers whose δ W the backward pass computes anyway."""
        return [
            self._modules[name].register_forward_pre_hook(self._tapping(name))
            for name, moments in self.fisher.items()
            if not moments.takes_outputs and isinstance(self._modules[name], nn.Linear)
        ]

    def begin(self, samples: int, mask: Tensor | None) -> None:
        """Start a batch of so many samples, of which the mask [B, T] tells the real tokens."""
        self._samples, self._mask = samples, mask

    def end(self) -> None:
        """Finish a batch."""
        for name in list(self._met):  # not every call had a part in the logits
            self._add(name)
        self._followed.clear()
        self._tapped.clear()
        self._copied = None

    def join_(self, sum_: Callable[[Tensor], None]) -> None:
        """Put together what all processes have gathered; each of them has to call it."""
        for sought in (self.fisher, self.loss):
            for moments in sought.values():
                moments.join_(sum_)

    def _tapping(self, name: str) -> Callable[..., Any]:
        """Give the layer a view of its input, whose gradient δ W is of this layer alone."""

        def pre(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            del module
            if not (torch.is_grad_enabled() and args and args[0].requires_grad):
                return None
            self._tapped[name] = args[0].view_as(args[0])
            return (self._tapped[name], *args[1:])

        return pre

    def follow(
        self,
        layer: Candidate,
        module: nn.Module,
        *,
        inputs: Tensor,
        output: Any,
    ) -> Tensor | None:
        """Have the gradient at a call's output meet its input rows.

        Args:
            layer: The layer.
            module: It.
            inputs: What it was called on.
            output: What it gave.

        Returns:
            The output to go on with; None: as it is.

        Raises:
            LayerError: If no graph is recorded.
        """
        moments = self.fisher.get(layer.name) or self.loss.get(layer.name)
        if moments is None:
            return None
        kind = LAYER_KINDS.get(layer.kind)
        if not torch.is_grad_enabled():
            raise LayerError(
                layer.name,
                "the model calls it under torch.no_grad, so its part in the loss is unknown. "
                "Measure without gradients: --no-gradients, or measure(..., gradients=False).",
            )
        samples = self._samples
        # Rows that are the input itself are centred at once, for a copy is made anyway.
        plain = isinstance(module, nn.Linear) and kind.reached(module) is None
        held: Tensor | None = self._copy(inputs, kind, module, moments.centre if plain else None)
        # The hook must not hold the output that it hangs on: such a circle is never freed.
        made: Tensor | None = None
        if isinstance(moments, FisherMoments) and moments.takes_outputs and not kind.lookup:
            made = output.detach()
        written = output._version
        looked_up = output.detach() if kind.lookup else None
        self._followed[layer.name] += 1
        note = self._noting(layer, kind, module, output)
        call = _Call()
        waits = self._waits_for_pulled(layer.name, kind, module, call)

        def gradient_hook(gradient: Tensor) -> None:
            nonlocal held, made
            assert held is not None
            self._copied = None
            note(gradient)
            if looked_up is not None:
                self._look_up(call, kind, module, indices=held, gradient=gradient, output=looked_up)
            else:
                rows = held if plain else kind.all_rows(module, held, samples)
                keep = real_rows(rows, kind.reached(module), self._mask)
                near = rows if plain else centred(rows, moments.centre, keep)
                call.rows = near
                call.gradients = kind.all_output_rows(module, gradient, samples).to(near)
                # What the model has written into its output in place is not W z any more.
                if (
                    made is not None
                    and made._version == written
                    and isinstance(moments, FisherMoments)
                ):
                    outputs = kind.all_output_rows(module, made, samples)
                    call.seen = centred(outputs, moments.output_at_centre, keep)
            held = made = None  # the model's next call may come before this one's graph goes
            self._met.setdefault(layer.name, []).append(call)
            if not waits:
                self._add_if_last(layer.name)

        if output.requires_grad:
            output.register_hook(gradient_hook)
            return None
        # The graph begins here. A copy of the leaf may be overwritten in place by what follows.
        leaf: Any = output.detach().requires_grad_()
        leaf.register_hook(gradient_hook)
        return cast(Tensor, leaf.clone())

    def _waits_for_pulled(self, name: str, kind: LayerKind, module: nn.Module, call: _Call) -> bool:
        """Have δ W of a call noted, which comes after its δ, and the call be added up then.

        Returns:
            Whether it will come.
        """
        tapped: Any = self._tapped.pop(name, None)
        if tapped is None:
            return False
        samples = self._samples

        def hook(gradient: Tensor) -> None:
            pulled = kind.all_rows(module, gradient, samples)
            if call.gradients is not None and pulled.dtype == call.gradients.dtype:
                call.seen = pulled
            self._add_if_last(name)

        tapped.register_hook(hook)
        return True

    def _copy(
        self, inputs: Tensor, kind: LayerKind, module: nn.Module, centre: Tensor | None
    ) -> Tensor:
        """Return a copy, so that what the model later writes into its input does no harm.

        Layers that are called on one tensor, one after the other, share it.

        Args:
            inputs: What a layer is called on.
            kind: The layer's kind.
            module: The layer.
            centre: What its rows are centred by in the copy [B, P, n], zero where they are not to
                be kept; None copies the input as it is.
        """
        if self._copied is None or not self._copied.holds(inputs):
            self._copied = _Copied(inputs, inputs._version)
        for about, copy in self._copied.copies:
            if about is centre or (
                about is not None and centre is not None and torch.equal(about, centre)
            ):
                return copy
        if centre is None:
            copy = inputs.clone()
        else:
            rows = kind.all_rows(module, inputs, self._samples)
            copy = centred(rows, centre, real_rows(rows, None, self._mask))
        self._copied.copies.append((centre, copy))
        return copy

    def _noting(
        self, layer: Candidate, kind: LayerKind, module: nn.Module, output: Tensor
    ) -> Callable[[Tensor], None]:
        """Return what notes the energies of a call's rows from the gradient at its output."""
        if self.energies is None or kind.lookup:
            return lambda gradient: None
        samples = self._samples
        calls = self.energies.setdefault(layer.name, [])
        number = len(calls)
        shape = kind.output_rows(module, output.detach(), samples).shape[:2]
        # Zero it stays where the call has no part in the logits.
        calls.append(torch.zeros(shape, dtype=torch.float64))

        def note(gradient: Tensor) -> None:
            rows = kind.output_rows(module, gradient, samples).float()
            calls[number] = squared_lengths(rows).cpu().double() * self.scale**2

        return note

    def _add_if_last(self, name: str) -> None:
        if len(self._met.get(name, ())) == self._followed[name]:
            self._add(name)

    def _add(self, name: str) -> None:
        """Add the batch's gradients at a layer, those of all its calls together.

        A sample's gradient in the weights is the sum over the calls, so that their rows are joined.
        """
        moments = self.fisher.get(name) or self.loss[name]
        calls = self._met.pop(name)
        found = [call.taken() for call in calls]
        parts = [
            torch.cat(known, 1) if len(known) > 1 else known[0]
            for part in zip(*found, strict=True)
            if len(known := [tensor for tensor in part if tensor is not None]) == len(calls)
        ]
        if self._by_token and isinstance(moments, FisherMoments):
            parts = [part.flatten(0, 1)[:, None] for part in parts]
        try:
            if name in self._tables:
                assert isinstance(moments, FisherMoments)
                moments.update_lookups(*parts, scale=self.scale)
            else:
                moments.update(*parts, scale=self.scale)
        except ValueError as error:
            raise LayerError(name, str(error)) from error

    def _look_up(
        self,
        call: _Call,
        kind: LayerKind,
        module: nn.Module,
        *,
        indices: Tensor,
        gradient: Tensor,
        output: Tensor,
    ) -> None:
        """Fill in a call on indices: what it has seen are the rows [B, P, D] that it looked up."""
        samples = self._samples
        rows = kind.all_output_rows(module, output, samples)
        gradients = kind.all_output_rows(module, gradient, samples).to(rows)
        keep = real_rows(rows, None, self._mask)
        if keep is not None:
            gradients = gradients * keep[..., None]
        call.rows, call.gradients, call.seen = indices.reshape(samples, -1), gradients, rows
