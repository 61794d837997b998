"""What a config.json from a stranger may make this package build: no more than its weights fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from compressor.errors import ModelError
from compressor.models.weights import TensorHeader

SPARE_VALUES = 1 << 28
"""Parameters beyond those of the weight files that a model may have: 1 GiB in float32."""

SPARE_MODULES = 20_000

DENSE_OVER_STORED = 64
"""Largest ratio of a dense model's parameters to those stored of its factorized form."""

SPARE_BUFFERS = 1 << 30
"""Values of buffers (tables of positions, masks) that a config may ask for."""

LARGEST = (
    (re.compile(r"(layer|depth|block|stage|expert|head|repeat)s?$"), 10_000),
    (re.compile(r"^num_(labels|classes)$"), 10_000_000),
    (re.compile(""), 1 << 40),
)
"""Largest integer of a config by its key; the first pattern that fits decides."""

DEEPEST = 64


def refuse_absurd(config: object, where: str) -> None:
    """Refuse numbers that no model has: a billion layers would fill the memory by their list.

    Args:
        config: Parsed JSON.
        where: File it came from, for messages.

    Raises:
        ModelError: Naming the key.
    """
    for key, number in _integers(config):
        largest = next(limit for pattern, limit in LARGEST if pattern.search(key))
        if abs(number) > largest:
            raise ModelError(
                f"{where}: key {key} is {_shown(number)}; expected at most {largest:,}. The "
                "file is damaged or hostile."
            )


@contextmanager
def bounded(header: Mapping[str, TensorHeader], where: str, *, ratio: float) -> Iterator[None]:
    """Refuse to build more parameters or modules than some weight files account for.

    Meant for the meta device, on which nothing is allocated yet.

    Args:
        header: Shapes of the tensors on disk; without any nothing is refused.
        where: What is being built, for messages.
        ratio: Parameters that one stored value accounts for.

    Raises:
        ModelError: As soon as more are built.
    """
    if not header:
        yield
        return
    values = int(ratio * sum(_count(entry.shape) for entry in header.values())) + SPARE_VALUES
    modules = 16 * len(header) + SPARE_MODULES
    seen = {"values": 0, "buffers": 0, "modules": 0}

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        del module
        seen["values"] += 0 if parameter is None else parameter.numel()
        if seen["values"] > values:
            raise ModelError(
                f"{where}: its config asks for more than {values:,} parameters (at {name}), which "
                "its weights do not hold. Config and weights do not belong together."
            )

    def count_buffer(module: nn.Module, name: str, buffer: Tensor | None) -> None:
        del module
        seen["buffers"] += 0 if buffer is None else buffer.numel()
        if seen["buffers"] > values + SPARE_BUFFERS:
            raise ModelError(
                f"{where}: its config asks for buffers of more than {SPARE_BUFFERS:,} values (at "
                f"{name}). Check its lengths and sizes."
            )

    def count_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        del module, child
        seen["modules"] += 1
        if seen["modules"] > modules:
            raise ModelError(
                f"{where}: its config asks for more than {modules:,} modules (at {name}), which "
                "its weights do not fill. Config and weights do not belong together."
            )

    handles = (
        register_module_parameter_registration_hook(count_parameter),
        register_module_buffer_registration_hook(count_buffer),
        register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shown(number: int) -> str:
    """Return a number that may have thousands of digits."""
    return f"{number:,}" if abs(number) < 1 << 80 else f"above 2^{abs(number).bit_length() - 1}"


def _integers(config: object, key: str = "", depth: int = 0) -> Iterable[tuple[str, int]]:
    if depth > DEEPEST:
        raise ModelError(f"config.json is nested more than {DEEPEST} deep at {key}.")
    if isinstance(config, int) and not isinstance(config, bool):
        yield key, config
    elif isinstance(config, Mapping):
        for name, value in config.items():
            yield from _integers(value, str(name), depth + 1)
    elif isinstance(config, list):
        for value in config:
            yield from _integers(value, key, depth + 1)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
