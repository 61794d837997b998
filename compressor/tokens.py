"""Calling models that predict tokens: to the last hidden state whole, to logits chunk by chunk.

The logits of one window of T tokens are a [T, V] tensor, and V may be 250,000. So the model's own
forward is run up to the last hidden state [T, D] only, and its head is run on a few rows at a time.
The head is whatever the model does after its backbone: a masked model's transform, a bias, a scale
or a soft cap belong to it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError, ModelError
from compressor.forward import Batches, Forward, Inputs, call, to_device

IGNORED = -100
"""Label of a position at which nothing is predicted."""

CHUNK_BYTES = 1 << 26
"""Size of the logits that exist at one time, in float32."""


class TokenForward(Forward):
    """Calls a model of tokens up to its last hidden state."""

    def __call__(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the last hidden state [B, T, D], before the head.

        Of a module without a recognizable backbone the logits [B, T, V] themselves are returned,
        and its head is the identity.

        Raises:
            DataError: If the model predicts one class a sample, and labels ask for tokens.
        """
        moved = to_device(inputs, self.device)
        found = backbone(model)
        # Without a cache transformers looks at positions, which shapes alone do not have.
        with nullcontext() if self.device.type == "meta" else uncached(model):
            hidden = (
                _logits(call(model, moved)) if found is None else _run_up_to(model, found, moved)
            )
        if hidden.ndim != 3:
            raise DataError(
                "Labels [batch, tokens] ask for predictions at every token, but the model gives a "
                f"tensor of shape {tuple(hidden.shape)}. If it predicts classes, give one class "
                "number a sample."
            )
        return hidden


class Head:
    """From rows of the last hidden state to logits.

    Args:
        model: A model of tokens, dense or factorized.
    """

    def __init__(self, model: nn.Module) -> None:
        found = backbone(model)
        self._given: _Given | None = None
        if found is None:
            return
        self._given = _Given()
        # A shallow copy shares every module but the backbone, whose output is given instead.
        self._model = copy.copy(model)
        stubs = {id(found), *(id(part) for part in (encoder(model),) if part is not None)}
        self._model._modules = {
            name: self._given if id(child) in stubs else child
            for name, child in model._modules.items()
        }
        if not any(child is self._given for child in self._model._modules.values()):
            raise ModelError(
                f"The backbone of {type(model).__name__} lies too deep to be told from its head. "
                "Wrap the model so that it returns its logits alone."
            )
        self._encoder_decoder = encoder(model) is not None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the logits [n, V] of hidden rows [n, D]."""
        if self._given is None:
            return rows
        self._given.rows = rows[None]
        ids = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        extra = {"decoder_input_ids": ids} if self._encoder_decoder else {}
        try:
            return _logits(self._model(input_ids=ids, **extra))[0]
        finally:
            self._given.rows = None

    def chunks(self, rows: Tensor) -> Iterator[slice]:
        """Yield the slices of rows [N, D] whose logits fit into `CHUNK_BYTES`."""
        if not len(rows):
            return
        with torch.no_grad():
            width = self(rows[:1]).shape[1]
        size = max(1, CHUNK_BYTES // (4 * width))
        for start in range(0, len(rows), size):
            yield slice(start, start + size)


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Have the model keep no keys and values of the tokens it has seen.

    Nothing is generated, and of many windows at once they are more than all else that is alive;
    blocks that are run alone would add theirs twice.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():  # a decoder may have a config of its own
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            configs[id(config)] = config
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


def predicts_tokens(batches: Batches) -> bool:
    """Return whether the labels of the first batch are tokens [B, T] and not classes [B]."""
    _, labels = next(iter(batches), (None, None))
    return labels is not None and labels.ndim == 2


def forward_for(batches: Batches, device: torch.device) -> Forward:
    """Return how to call a model on these batches: for tokens or for classes."""
    return TokenForward(device=device) if predicts_tokens(batches) else Forward(device=device)


def backbone(model: nn.Module) -> nn.Module | None:
    """Return the module that makes the last hidden state, or None where it cannot be told.

    transformers names it: the base model, or the decoder where a model has no single base.
    """
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module) and base is not model:
        return base
    decoder = _part(model, "get_decoder")
    return None if decoder is model else decoder


def encoder(model: nn.Module) -> nn.Module | None:
    """Return the encoder of an encoder-decoder, None of other models."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    return _part(model, "get_encoder")


def _part(model: nn.Module, getter: str) -> nn.Module | None:
    found = getattr(model, getter, lambda: None)()
    return found if isinstance(found, nn.Module) else None


class _ReachedError(Exception):
    """The backbone has given its output; what comes after it is not wanted."""


def _run_up_to(model: nn.Module, part: nn.Module, inputs: Inputs) -> Tensor:
    """Run the model's own forward until ``part`` has its output, and return that."""
    outputs: list[Any] = []

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        outputs.append(output)
        raise _ReachedError

    handle = part.register_forward_hook(stop)
    try:
        call(model, inputs)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    if not outputs:
        raise ModelError(f"{type(model).__name__} was run, but its backbone was not called.")
    hidden = outputs[0]
    hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
    assert isinstance(hidden, Tensor)
    return hidden


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise ModelError(f"The model's output holds no logits, found {type(logits).__name__}.")
    return logits


@dataclass
class _Output:
    """What a head reads of its backbone's output: the last hidden state, and nothing else."""

    last_hidden_state: Tensor

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands where the backbone was and returns the rows it was given."""

    rows: Tensor | None = None

    def forward(self, *args: object, **kwargs: object) -> _Output:
        del args, kwargs
        assert self.rows is not None
        return _Output(self.rows)
