"""Calling a person's own factory: a function in a Python file that builds a module."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, did_you_mean
from compressor.models.source import ImageTransform
from compressor.paths import require_readable, state, worded


def call_factory(reference: str) -> tuple[nn.Module, ImageTransform | None]:
    """Import a Python file and call one of its functions without arguments.

    Args:
        reference: ``path/to/file.py:function``; the function returns a module, or the module and
            its input transform (an `ImageTransform`, a mapping with its fields, or a callable
            from a PIL image to the input tensor).

    Raises:
        UsageError: If the file or the function does not exist.
        ModelError: If the file or the function fails, or returns something else.
    """
    text, separator, name = reference.rpartition(":")
    if not separator or not text.endswith(".py"):
        raise UsageError(f"{reference!r} names no function. Expected path/to/file.py:factory.")
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"{reference!r}: there is no file {path}, it {state(path)}. Expected "
            "path/to/file.py:factory."
        )
    require_readable(path, ModelError)
    factory = _function(_import_file(path), path, name)
    try:
        returned = factory()
    except Exception as error:
        raise ModelError(f"{reference} failed: {type(error).__name__}: {worded(error)}") from error
    module, transform = returned if _is_pair(returned) else (returned, None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{reference} returned {type(module).__name__}; expected a torch.nn.Module, or "
            "(module, transform)."
        )
    return module, _as_transform(transform, reference)


def _is_pair(returned: object) -> bool:
    return isinstance(returned, (tuple, list)) and len(returned) == 2


def _import_file(path: Path) -> object:
    """Execute a Python file as a module of its own; its neighbours can be imported from it."""
    name = f"compressor_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(
            f"Importing {path} failed: {type(error).__name__}: {worded(error)}"
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _function(module: object, path: Path, name: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if not callable(found):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__  # type: ignore[attr-defined]
        ]
        raise UsageError(f"{path} has no function {name!r}.{did_you_mean(name, own)}")
    factory: Callable[[], Any] = found
    return factory


def _as_transform(transform: Any, reference: str) -> ImageTransform | None:
    if transform is None or isinstance(transform, ImageTransform):
        return transform
    if isinstance(transform, Mapping):
        try:
            return transform_from_json(dict(transform))
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(
                f"{reference}: its transform {dict(transform)} does not describe one: {error}. "
                "Expected input_size, mean and std."
            ) from error
    if callable(transform):
        return _from_callable(transform, reference)
    raise ModelError(
        f"{reference}: its transform is a {type(transform).__name__}; expected an ImageTransform, "
        "a mapping with input_size, mean and std, or a callable from a PIL image to a tensor."
    )


def _from_callable(transform: Callable[..., object], reference: str) -> ImageTransform:
    """Wrap a callable, asking a blank image what size it makes."""
    from PIL import Image

    try:
        made = transform(Image.new("RGB", (256, 256)))
    except Exception as error:
        raise ModelError(
            f"{reference}: its transform fails on a 256×256 RGB image: {error}"
        ) from error
    if not isinstance(made, Tensor) or made.ndim != 3:
        raise ModelError(
            f"{reference}: its transform makes {type(made).__name__}; expected a tensor [C, H, W]."
        )
    channels, height, width = made.shape
    return ImageTransform(
        input_size=(channels, height, width),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        custom=transform,
    )


def transform_to_json(transform: ImageTransform | None) -> dict[str, object] | None:
    """Return a transform as JSON, or None for one that only code can tell."""
    if transform is None or transform.custom is not None:
        return None
    return {key: value for key, value in vars(transform).items() if key != "custom"}


def transform_from_json(values: object) -> ImageTransform | None:
    """Return the transform that `transform_to_json` wrote, or None where there was none."""
    if not isinstance(values, Mapping):
        return None
    fields: dict[str, Any] = dict(values)
    for name, number in (("input_size", int), ("mean", float), ("std", float)):
        fields[name] = tuple(number(item) for item in fields[name])
    return ImageTransform(**fields)
