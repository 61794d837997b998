"""The probe: a few made-up inputs and the logits a model had on them, to be compared elsewhere.

Inputs are not stored but made from a seed by SHAKE-128 (FIPS 202), which is the same on every
machine, as no library's random numbers need be. Nothing of a person's data is in them: of an
example only shapes, types and ranges are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from compressor.errors import CompressorError, ModelError
from compressor.forward import Inputs, call, logits_of, to_device
from compressor.models.source import LoadedModel

SAMPLES = 2
TOKENS = 16
STORED_LOGITS = 1024
"""At most this many logits are stored, evenly spaced over all of them."""

LARGEST_INPUT = 1 << 24
"""Elements of the inputs that a file from a stranger may ask for."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a logit, as a share of the largest logit, by the type computed in: other
processors sum in another order, and some round products of float32 to 10 bits (TF32)."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES} | {
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "uint8": torch.uint8,
}

Number = Annotated[float, Field(allow_inf_nan=False)]


class ProbeInput(BaseModel):
    """One tensor of the probe's inputs.

    Args:
        name: Keyword it is passed as; None where inputs go by position.
        shape: Its shape, samples first.
        dtype: Its type.
        low: Least value.
        high: Largest value of integers; floats stay below it.
        avoid: An integer that does not occur (the id of padding), or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8"]
    low: Number
    high: Number
    avoid: int | None = None

    def tensor(self, seed: int, position: int) -> Tensor:
        """Return the tensor, the same on every machine.

        Args:
            seed: Seed of the probe.
            position: Place among the inputs.
        """
        count = math.prod(self.shape)
        key = f"compressor probe {seed} {position}".encode()
        dtype = _DTYPES[self.dtype]
        if dtype.is_floating_point:
            steps = np.frombuffer(hashlib.shake_128(key).digest(count), dtype=np.uint8)
            values = self.low + (self.high - self.low) * (steps.astype(np.float64) / 256)
            return torch.from_numpy(values).reshape(self.shape).to(dtype)
        words = np.frombuffer(hashlib.shake_128(key).digest(8 * count), dtype="<u8")
        low, high = int(self.low), int(self.high)
        integers = (words % np.uint64(high - low + 1)).astype(np.int64) + low
        if self.avoid is not None and low < high:
            integers[integers == self.avoid] = low if self.avoid != low else high
        return torch.from_numpy(integers).reshape(self.shape).to(dtype)


class Probe(BaseModel):
    """Inputs, and what a model made of them.

    Args:
        seed: Seed that the inputs are made from.
        form: How the model is called: on one tensor, by position or by name.
        inputs: What each tensor looks like.
        sha256: Hash of the inputs' types, shapes and bytes.
        dtype: Type that the model computed in.
        shape: Shape of the logits.
        every: Each how-manieth logit is stored.
        logits: These logits.
        tolerance: Largest difference allowed, as a share of the largest stored logit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    form: Literal["tensor", "tuple", "mapping"]
    inputs: Annotated[tuple[ProbeInput, ...], Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    every: Annotated[int, Field(ge=1)]
    logits: Annotated[tuple[Number, ...], Field(min_length=1, max_length=STORED_LOGITS)]
    tolerance: Annotated[float, Field(gt=0, le=1)]

    def batch(self) -> Inputs:
        """Return the inputs.

        Raises:
            ModelError: If they are too large, or not those that the logits belong to.
        """
        if sum(math.prod(given.shape) for given in self.inputs) > LARGEST_INPUT:
            raise ModelError(f"The probe asks for more than {LARGEST_INPUT:,} values of input.")
        if any(given.high < given.low or abs(given.high) > 2**53 for given in self.inputs):
            raise ModelError("The probe's inputs have no range: high is below low, or too large.")
        made = [given.tensor(self.seed, place) for place, given in enumerate(self.inputs)]
        if hash_of_inputs(made) != self.sha256:
            raise ModelError("The probe's inputs are not those that its logits were made from.")
        if self.form == "mapping":
            return {
                str(given.name): tensor for given, tensor in zip(self.inputs, made, strict=True)
            }
        return made[0] if self.form == "tensor" else tuple(made)


class Replayed(NamedTuple):
    """How far a model's logits are off a probe's.

    Args:
        difference: Largest absolute difference.
        allowed: What is allowed.
    """

    difference: float
    allowed: float


def take_probe(model: LoadedModel, example: Inputs | None = None, *, seed: int = 0) -> Probe | str:
    """Return the probe of a model, or why it has none.

    Args:
        model: The model as it will be saved; it is run in eval mode, and left as it is.
        example: Inputs of one or more samples, whose form is taken; None asks the model.
        seed: Seed of the inputs.
    """
    try:
        return _taken(model, example, seed)
    except CompressorError as error:
        return str(error)


def _taken(model: LoadedModel, example: Inputs | None, seed: int) -> Probe:
    """Return the probe of a model.

    Raises:
        ModelError: If it has none, saying why.
    """
    dtype = _dtype(model.module)
    if example is None:
        example = model.example_inputs(SAMPLES, length=TOKENS)
    try:
        form, inputs = _described(example, model.architecture.get("pad_token_id"))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"its example inputs cannot be described: {error}") from error
    draft = Probe(
        seed=seed,
        form=form,
        inputs=inputs,
        sha256=hash_of_inputs([given.tensor(seed, place) for place, given in enumerate(inputs)]),
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
        shape=(),
        every=1,
        logits=(0.0,),
        tolerance=TOLERANCES[dtype],
    )
    logits, again = (_logits(model.module, draft.batch()) for _ in range(2))
    if not bool(torch.isfinite(logits).all()) or not logits.numel():
        raise ModelError("its logits on made-up inputs are empty or not finite")
    if not torch.equal(logits, again):
        raise ModelError("its logits change from one call to the next")
    every = -(-logits.numel() // STORED_LOGITS)
    stored = tuple(logits.flatten()[::every].tolist())
    return draft.model_copy(update={"shape": tuple(logits.shape), "every": every, "logits": stored})


def replay(module: nn.Module, probe: Probe, *, tolerance: float | None = None) -> Replayed:
    """Run a model on a probe's inputs and compare.

    Args:
        module: The model as loaded; it is converted to the type that the probe was taken in.
        probe: The probe.
        tolerance: Another tolerance than the stored one.

    Raises:
        ModelError: If the model does not run on the inputs, or its output has another shape.
    """
    inputs = probe.batch()
    logits = _logits(module.to(_DTYPES[probe.dtype]), inputs)
    if tuple(logits.shape) != probe.shape:
        raise ModelError(
            f"its output has shape {tuple(logits.shape)}, it was {probe.shape} when it was saved"
        )
    expected = torch.tensor(probe.logits, dtype=torch.float64)
    found = logits.flatten()[:: probe.every].double()
    if found.shape != expected.shape:
        raise ModelError(f"the probe holds {len(expected)} logits, expected {len(found)}")
    difference = float((found - expected).abs().max())
    share = probe.tolerance if tolerance is None else tolerance
    return Replayed(difference, share * float(expected.abs().max()) + 1e-9)


def hash_of_inputs(tensors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of tensors: types, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        plain = tensor.double() if tensor.is_floating_point() else tensor.long()
        digest.update(
            plain.numpy().astype("<f8" if tensor.is_floating_point() else "<i8").tobytes()
        )
    return digest.hexdigest()


def _logits(module: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits in float32 on the CPU; the module's mode is left as it was.

    Raises:
        ModelError: If the module does not run on the inputs, or returns no logits.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return logits_of(call(module, to_device(inputs, device))).detach().float().cpu()
    except CompressorError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise ModelError(f"it fails on made-up inputs: {type(error).__name__}: {error}") from error
    finally:
        for part, training in modes.items():
            part.training = training


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the one floating-point type that a module computes in.

    Raises:
        ModelError: If there are several, or its weights are not in memory.
    """
    parameters = list(module.parameters())
    found = {p.dtype for p in parameters if p.is_floating_point()}
    if any(p.is_meta for p in parameters):
        raise ModelError("its weights are not in memory")
    if len(found) != 1 or not found <= TOLERANCES.keys():
        raise ModelError("it computes in several types at once, or in none")
    return found.pop()


def _described(
    example: Inputs, padding: object
) -> tuple[Literal["tensor", "tuple", "mapping"], tuple[ProbeInput, ...]]:
    """Return the form of some inputs: shapes, types and ranges, and nothing of their content."""
    if isinstance(example, Tensor):
        return "tensor", (_input(None, example, None),)
    if isinstance(example, Mapping):
        avoid = padding if isinstance(padding, int) else None
        return "mapping", tuple(
            _input(name, tensor, avoid if name.endswith("input_ids") else None)
            for name, tensor in example.items()
        )
    return "tuple", tuple(_input(None, tensor, None) for tensor in example)


def _input(name: str | None, tensor: Tensor, avoid: int | None) -> ProbeInput:
    low, high = math.floor(tensor.min().item()), math.ceil(tensor.max().item())
    if not tensor.is_floating_point() and name is not None and name.endswith("attention_mask"):
        low = high = 1
    return ProbeInput(
        name=name,
        shape=(min(len(tensor), SAMPLES), *tensor.shape[1:]),
        dtype=str(tensor.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        low=low,
        high=high,
        avoid=avoid,
    )
