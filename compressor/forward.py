"""Calling any model on any batch: inputs as tensor, tuple or dict; outputs down to class logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from compressor.distributed import ALONE, Group
from compressor.errors import ModelError
from compressor.progress import SILENT, Progress
from compressor.room import Room

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a model is called on: ``model(x)``, ``model(*xs)`` or ``model(**xs)``."""

Task = Literal["classification", "causal", "masked", "seq2seq"]
"""What a model predicts: a class of the sample, or the next token, masked ones, an answer's."""

Batch: TypeAlias = tuple[Inputs, Tensor | None]
"""Inputs of B samples, and their labels [B] (int64) or None; [B, T] where tokens are predicted."""

Batches: TypeAlias = Iterable[Batch]
"""Batches that can be iterated more than once, in the same order each time."""


@dataclass(frozen=True)
class Forward:
    """One way of calling a model and of reading its class logits.

    Args:
        classes: Indices [C] of the logits to compare, where the data covers part of the model's
            classes; labels count positions in it. None compares all logits.
        device: Where inputs are moved before the call.
        group: The processes that share passes over batches.
        room: What is known of the samples that fit into memory at once.
    """

    classes: Tensor | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Group = ALONE
    room: Room = field(default_factory=Room, compare=False)

    def __call__(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits [B, C] of one batch.

        Raises:
            ModelError: If the output holds no two-dimensional logits.
        """
        logits = logits_of(call(model, to_device(inputs, self.device)))
        if logits.ndim != 2:
            raise ModelError(
                f"The model's logits have shape {tuple(logits.shape)}; expected [batch, classes]. "
                "A model that predicts tokens needs labels [batch, tokens]."
            )
        return logits if self.classes is None else logits[:, self.classes.to(logits.device)]

    def rows(self, model: nn.Module, inputs: Inputs, progress: Progress = SILENT) -> Tensor:
        """Return what a call gives for a batch, in parts of it where the whole does not fit.

        For passes without gradients and hooks, whose rows do not depend on each other.
        """
        size = batch_length(inputs)

        def rows(start: int, stop: int) -> Tensor:
            return self(model, inputs if stop - start == size else part(inputs, start, stop))

        found = self.room.calls(rows, size, progress)
        return found[0] if len(found) == 1 else torch.cat(found)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` on inputs of any of the three forms."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def logits_of(output: Any) -> Tensor:
    """Return the logits [B, C] or [B, T, V] in a model's output (tensor, tuple, dict, ModelOutput).

    Raises:
        ModelError: If there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        logits = logits.get("logits", next(iter(logits.values()), None))
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        found = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise ModelError(
            f"The model's output holds no class logits: expected a tensor [batch, classes] (or "
            f"[batch, tokens, vocabulary] of a language model), found {found}. Wrap the "
            "model so that it returns its logits."
        )
    return logits


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Return the inputs with every tensor on ``device``."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: value.to(device) for key, value in inputs.items()}
    return tuple(value.to(device) for value in inputs)


def batch_length(inputs: Inputs) -> int:
    """Return the number of samples in a batch."""
    return len(first_tensor(inputs))


def part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Return the samples from ``start`` up to ``stop`` of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    if isinstance(inputs, Mapping):
        return {key: value[start:stop] for key, value in inputs.items()}
    return tuple(value[start:stop] for value in inputs)  # loaders turn tuples into lists


@dataclass(frozen=True)
class Parts:
    """Batches of at most so many samples, cut from larger ones.

    Args:
        batches: The larger ones.
        batch_size: Largest number of samples.
    """

    batches: Batches
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield each batch's parts in order."""
        for inputs, labels in self.batches:
            for start in range(0, batch_length(inputs), self.batch_size):
                stop = start + self.batch_size
                yield part(inputs, start, stop), None if labels is None else labels[start:stop]


def fitted(batches: Batches, most: int | None) -> Batches:
    """Return the same samples in batches of at most ``most``; None leaves them as they are.

    A split batches them anew, as it would have done for a smaller batch size in the first place.
    """
    if most is None or largest_batch(batches) <= most:
        return batches
    split: Any = batches
    if _batches_itself(split):
        smaller: Batches = replace(split, batch_size=most)
        return smaller
    return Parts(batches, most)


def largest_batch(batches: Batches) -> int:
    """Return the samples of the largest batch: as a split says, else of the first; 0 for none."""
    split: Any = batches
    if _batches_itself(split):
        return int(split.batch_size)
    return next((batch_length(inputs) for inputs, _ in batches), 0)


def _batches_itself(batches: Any) -> bool:
    """Return whether batches are samples with a size to batch them by, as the splits are."""
    return is_dataclass(batches) and hasattr(batches, "batch_size")


def repeated(inputs: Inputs, samples: int) -> Inputs:
    """Return as many samples as asked for, taken from a batch in turn, from the first on again."""
    return chosen(inputs, torch.arange(samples) % batch_length(inputs))


def chosen(inputs: Inputs, index: Tensor) -> Inputs:
    """Return the samples of these indices [k] of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[index]
    if isinstance(inputs, Mapping):
        return {key: value[index] for key, value in inputs.items()}
    return tuple(value[index] for value in inputs)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches that are `alike` as one."""
    inputs, labels = zip(*batches, strict=True)
    together: Inputs
    if isinstance(inputs[0], Tensor):
        together = torch.cat(inputs)
    elif isinstance(inputs[0], Mapping):
        together = {key: torch.cat([one[key] for one in inputs]) for key in inputs[0]}
    else:
        together = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
    return together, None if labels[0] is None else torch.cat(labels)


def alike(first: Batch, second: Batch) -> bool:
    """Return whether samples of two batches have the same shapes, and labels both or neither."""
    (one, labels), (other, others) = first, second
    return (labels is None) == (others is None) and _shapes(one) == _shapes(other)


def _shapes(inputs: Inputs) -> list[tuple[object, torch.Size]]:
    if isinstance(inputs, Tensor):
        return [("", inputs.shape[1:])]
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return [(name, tensor.shape[1:]) for name, tensor in named]


def first_tensor(inputs: Inputs) -> Tensor:
    """Return the tensor itself, or the first of a tuple or dict (input_ids of a text model)."""
    if isinstance(inputs, Tensor):
        return inputs
    return next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))


def token_mask(inputs: Inputs) -> Tensor | None:
    """Return the mask [B, T] of real tokens (nonzero) against padding, where inputs carry one."""
    if isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            return mask
    return None


def default_device(model: nn.Module) -> torch.device:
    """Return where the model's first parameter lies, the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
