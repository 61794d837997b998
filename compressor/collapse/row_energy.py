"""How much the predictions depend on each row of a layer's output: the gradient's size there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.capture import fisher_gradient, frozen, random_signs_
from compressor.collapse.token_capture import drawn_gradient
from compressor.forward import Batches, Forward, Inputs, batch_length, token_mask
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS
from compressor.tokens import Head, TokenForward, before_head

RowEnergies = dict[str, list[Tensor]]
"""‖δ‖² [B, P] at the output rows of each layer, one tensor for each of its calls in order."""


@dataclass(frozen=True)
class BatchEnergies:
    """How much the predictions depend on each row of one batch.

    Args:
        samples: Number of samples B.
        mask: Which tokens are real, [B, T]; None where all are.
        energies: ‖δ‖² at the output rows, by layer and call; empty where another process has them.
    """

    samples: int
    mask: Tensor | None
    energies: RowEnergies


def batch_energies(
    model: nn.Module,
    layers: Mapping[str, Candidate],
    batches: Batches,
    *,
    forward: Forward,
    samples: int,
    seed: int,
) -> tuple[BatchEnergies, ...]:
    """Return the energies of the first batches, of so many samples at least.

    Processes share the batches: each has the energies of its own ones.

    Args:
        model: The dense model, in eval mode.
        layers: The candidates by name. Embeddings have no such rows; of language models, neither
            have layers after the last hidden state.
        batches: Calibration batches; the labels are not looked at.
        forward: How to call the model.
        samples: Whole batches are taken until this many samples are reached.
        seed: Of the gradients' random signs.
    """
    names = [name for name, layer in layers.items() if not LAYER_KINDS.get(layer.kind).lookup]
    if isinstance(forward, TokenForward):
        names = [name for name in names if before_head(model, name)]
    generator = torch.Generator().manual_seed(seed)
    found: list[BatchEnergies] = []
    skipped: list[int] = []
    for index, (inputs, _) in enumerate(batches):
        energies: RowEnergies = {}
        if forward.group.takes(index):
            energies = row_energies(
                model,
                layers,
                names,
                inputs,
                forward=forward,
                generator=generator,
                skipped=skipped,
            )
            skipped = []
        else:
            skipped.append(batch_length(inputs))
        found.append(BatchEnergies(batch_length(inputs), token_mask(inputs), energies))
        if sum(batch.samples for batch in found) >= samples:
            break
    return tuple(found)


def row_energies(
    model: nn.Module,
    layers: Mapping[str, Candidate],
    names: Iterable[str],
    inputs: Inputs,
    *,
    forward: Forward,
    generator: torch.Generator,
    skipped: Sequence[int] = (),
) -> RowEnergies:
    """Return ‖δ‖² at each output row, with δ drawn as for the Fisher, up to one common factor.

    Args:
        model: The dense model, in eval mode.
        layers: The candidates by name.
        names: Those that are asked for.
        inputs: One batch.
        forward: How to call the model.
        generator: Source of the random signs.
        skipped: Samples of the batches since the last one that were left to other processes: their
            signs are drawn and dropped, so that this batch gets its own.
    """
    modules = dict(model.named_modules())
    samples = batch_length(inputs)
    found: dict[str, dict[int, Tensor]] = {name: {} for name in names}

    def watch(name: str) -> Callable[..., Any]:
        kind, calls = LAYER_KINDS.get(layers[name].kind), found[name]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            del args
            call = len(calls)
            rows = kind.output_rows(module, output.detach(), samples)
            calls[call] = torch.zeros(rows.shape[:2], device=rows.device)

            def keep(gradient: Tensor) -> None:
                seen = kind.output_rows(module, gradient, samples)
                calls[call] = seen.float().square().sum(-1)

            if output.requires_grad:
                output.register_hook(keep)  # type: ignore[no-untyped-call]
                return None
            leaf = output.detach().requires_grad_()
            leaf.register_hook(keep)  # type: ignore[no-untyped-call]
            return leaf.clone()

        return hook

    with frozen(model), ExitStack() as hooks, torch.enable_grad():
        for name in found:
            handle = modules[name].register_forward_hook(watch(name))
            hooks.callback(handle.remove)
        logits = forward(model, inputs)
        if isinstance(forward, TokenForward):  # these are hidden states yet
            drawn = drawn_gradient(Head(model), logits, generator)
        else:
            for samples_of_others in skipped:
                random_signs_(logits.new_zeros(samples_of_others, logits.shape[1]), generator)
            drawn = fisher_gradient(logits, generator)
        if logits.requires_grad:
            # Scaled to 1: products of tiny gradients are denormal, and a hundred times slower.
            largest = drawn.abs().max().clamp_min(torch.finfo(drawn.dtype).tiny)
            torch.autograd.backward(logits, (drawn / largest).to(logits.dtype))
            scale = float(largest) ** 2
        else:
            scale = 1.0
    return {
        name: [calls[call].cpu().double() * scale for call in sorted(calls)]
        for name, calls in found.items()
    }
