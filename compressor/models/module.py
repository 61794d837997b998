"""Plain torch modules: ``path/to/file.py:factory``, with or without --checkpoint."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.format import parse_lowrank
from compressor.errors import CheckpointError, ModelError, UsageError, did_you_mean
from compressor.layers.surgery import install_skeletons
from compressor.models.loading import load_exactly
from compressor.models.source import MODEL_SOURCES, ImageTransform, LoadedModel, ModelOptions
from compressor.models.weights import (
    PLAIN_FLOATS,
    find_weight_files,
    floating_dtypes,
    hash_files,
    read_header,
    read_state_dict,
    refuse_non_finite,
    refuse_quantized,
    size_of,
)


class ModuleSource:
    """Builds a module by calling a function in a person's own file."""

    name = "torch"

    def recognises(self, reference: str, options: ModelOptions) -> bool:
        """Return whether ``reference`` has the form ``file.py:function``."""
        del options
        path, separator, _ = reference.rpartition(":")
        return (bool(separator) and path.endswith(".py")) or reference.endswith(".py")

    def load(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Call the factory, and load --checkpoint into its module where there is one.

        Raises:
            UsageError: If the file or function does not exist.
            ModelError: If the factory fails, or the weights do not fit its module.
        """
        module, transform = call_factory(reference)
        files: tuple[Path, ...] = ()
        dtypes = _own_dtypes(module)
        if options.checkpoint is not None:
            files = (options.checkpoint,)
            header = read_header(files)
            refuse_quantized(header, str(options.checkpoint))
            state = read_state_dict(options.checkpoint)
            load_exactly(module, state, where=str(options.checkpoint))
            dtypes = floating_dtypes(header)
        refuse_non_finite(module, reference)
        return _describe(
            module.float().eval().to(options.device),
            reference,
            options,
            transform=transform,
            storage_dtypes=dtypes,
            files=files,
        )

    def skeleton(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Build the module; a factory may compute on its tensors, so they are real ones."""
        module, transform = call_factory(reference)
        files = (options.checkpoint,) if options.checkpoint else ()
        if files:
            read_header(files)
        return _describe(
            module.float().eval(), reference, options, transform=transform, files=files, hash_=False
        )

    def owns(self, module: nn.Module) -> bool:
        """Return True: any module is a torch module; a framework's own source goes before."""
        return isinstance(module, nn.Module)

    def describe(self, module: nn.Module) -> LoadedModel:
        """Describe a module built in Python."""
        return _describe(
            module, type(module).__name__, ModelOptions(), storage_dtypes=_own_dtypes(module)
        )

    def write_architecture(
        self, model: LoadedModel, directory: Path, lowrank: Mapping[str, object]
    ) -> None:
        """Write config.json: the block, the preprocessing, and what built the module.

        The factory's name is there for a person to read. It is never called by itself.
        """
        config: dict[str, object] = {
            "framework": "torch",
            "class": type(model.module).__name__,
            "factory": model.architecture.get("factory"),
            "num_classes": model.num_classes,
            "class_names": model.class_names,
            "transform": _transform_to_json(model.transform),
            "lowrank": dict(lowrank),
        }
        path = directory / "config.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def write_weights(
        self,
        model: LoadedModel,
        directory: Path,
        state: Mapping[str, Tensor],
        *,
        max_shard_size: str,
    ) -> None:
        """Write model.safetensors with the names of the state dict."""
        from huggingface_hub import save_torch_state_dict

        del model
        save_torch_state_dict(dict(state), directory, max_shard_size=max_shard_size)

    def rebuild(
        self, directory: Path, config: Mapping[str, object], options: ModelOptions
    ) -> LoadedModel:
        """Load a saved directory into the module that ``options.factory`` builds.

        Raises:
            CheckpointError: If no factory is given.
        """
        if options.factory is None:
            raise CheckpointError(_needs_factory(directory, config))
        module, transform = call_factory(options.factory)
        return rebuild_into(module, directory, config, options, transform=transform)


def rebuild_into(
    module: nn.Module,
    directory: Path,
    config: Mapping[str, object],
    options: ModelOptions,
    *,
    transform: ImageTransform | None = None,
) -> LoadedModel:
    """Make ``module`` the saved model, in place.

    Args:
        module: The dense module, as it was before compression; its weights do not matter.
        directory: A directory that this package saved.
        config: Its config.json.
        options: Device, and overrides of the input transform.
        transform: The input transform that came with the module.

    Raises:
        LayerError: If the module has not the layers that were factorized.
        ModelError: If the weights do not fit.
    """
    block = config["lowrank"]
    assert isinstance(block, Mapping)
    lowrank = parse_lowrank(block, where=str(directory / "config.json"))
    files = find_weight_files(directory)
    header = read_header(files)
    install_skeletons(module, lowrank.layers)
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_state_dict(path)
    load_exactly(module, state, where=str(directory))
    refuse_non_finite(module, str(directory))
    names = config.get("class_names")
    return _describe(
        module.float().eval().to(options.device),
        str(directory),
        options,
        transform=transform or _transform_from_json(config.get("transform")),
        storage_dtypes=floating_dtypes(header),
        files=files,
        class_names=tuple(str(name) for name in names) if isinstance(names, list) else None,
        factory=options.factory,
    )


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
        raise UsageError(f"{reference!r}: there is no file {path}.")
    factory = _function(_import_file(path), path, name)
    try:
        returned = factory()
    except Exception as error:
        raise ModelError(f"{reference} failed: {type(error).__name__}: {error}") from error
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
        raise ModelError(f"Importing {path} failed: {type(error).__name__}: {error}") from error
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
            return _transform_from_json(dict(transform))
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


def _transform_to_json(transform: ImageTransform | None) -> dict[str, object] | None:
    if transform is None or transform.custom is not None:
        return None
    return {key: value for key, value in vars(transform).items() if key != "custom"}


def _transform_from_json(values: object) -> ImageTransform | None:
    if not isinstance(values, Mapping):
        return None
    fields: dict[str, Any] = dict(values)
    for name, number in (("input_size", int), ("mean", float), ("std", float)):
        fields[name] = tuple(number(item) for item in fields[name])
    return ImageTransform(**fields)


def _overridden(transform: ImageTransform | None, options: ModelOptions) -> ImageTransform | None:
    """Return the transform with the options put in; pixels in [0, 1] where nothing normalizes."""
    size = options.input_size or (transform.input_size if transform else None)
    if size is None:
        return None
    base = transform or ImageTransform(size, (0.0,) * size[0], (1.0,) * size[0])
    return ImageTransform(
        input_size=size,
        mean=options.mean or base.mean,
        std=options.std or base.std,
        interpolation=base.interpolation,
        crop_pct=base.crop_pct,
        crop_mode=base.crop_mode,
        custom=None if options.input_size or options.mean or options.std else base.custom,
    )


def _own_dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {
        key: tensor.dtype
        for key, tensor in module.state_dict().items()
        if tensor.dtype in PLAIN_FLOATS
    }


def _describe(
    module: nn.Module,
    reference: str,
    options: ModelOptions,
    *,
    transform: ImageTransform | None = None,
    storage_dtypes: Mapping[str, torch.dtype] | None = None,
    files: tuple[Path, ...] = (),
    hash_: bool = True,
    class_names: tuple[str, ...] | None = None,
    factory: str | None = None,
) -> LoadedModel:
    transform = _overridden(transform, options)
    model = LoadedModel(
        module=module,
        framework="torch",
        reference=reference,
        modality="image" if transform else "tensor",
        class_names=class_names,
        num_classes=options.num_classes,
        transform=transform,
        storage_dtypes=storage_dtypes or {},
        bytes_on_disk=size_of(files) if files else None,
        sha256=hash_files(files) if files and hash_ else None,
        architecture={"factory": factory or (reference if ".py:" in reference else None)},
    )
    return model if transform is None else _counted(model, options)


def _counted(model: LoadedModel, options: ModelOptions) -> LoadedModel:
    """Return the model with its number of classes, as one forward shows it.

    Raises:
        ModelError: If the module does not run on its input size, or --num-classes says otherwise.
    """
    from dataclasses import replace

    from compressor.forward import call, logits_of

    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            classes = logits_of(call(model.module, model.example_inputs(1))).shape[1]
    except RuntimeError as error:
        size = model.transform.input_size if model.transform else None
        raise ModelError(
            f"{model.reference}: the module fails on an input of size {size}: {error}. Check "
            "--input-size."
        ) from error
    finally:
        model.module.train(training)
    if options.num_classes not in (None, classes):
        raise ModelError(
            f"{model.reference} makes {classes} logits, but --num-classes says "
            f"{options.num_classes}."
        )
    return replace(model, num_classes=classes)


def _needs_factory(directory: Path, config: Mapping[str, object]) -> str:
    told = config.get("factory")
    example = told if isinstance(told, str) else "path/to/file.py:factory"
    return (
        f"{directory} holds the weights of a plain torch module ({config.get('class')}); its "
        f"Python code is not in the directory. Say what builds the dense module: --factory "
        f"{example}, or in Python compressor.load({str(directory)!r}, model=module)."
    )


MODEL_SOURCES.register("torch")(ModuleSource())
