"""Plain torch modules: ``path/to/file.py:factory``, with or without --checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.format import find_lowrank
from compressor.errors import CheckpointError, ModelError
from compressor.layers.surgery import install_skeletons
from compressor.models.factory import call_factory, transform_from_json, transform_to_json
from compressor.models.loading import load_exactly
from compressor.models.source import (
    MODEL_SOURCES,
    ImageTransform,
    LoadedModel,
    ModelOptions,
    NamesAsBuilt,
)
from compressor.models.weights import (
    PLAIN_FLOATS,
    find_weight_files,
    floating_dtypes,
    hash_files,
    read_header,
    read_state_dict,
    read_state_dicts,
    refuse_non_finite,
    refuse_quantized,
    size_of,
)


class ModuleSource(NamesAsBuilt):
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
        notes: tuple[str, ...] = ()
        if options.checkpoint is None:
            notes = (
                f"No --checkpoint was given: the weights are those that {reference} returns. "
                "Unless it loads trained ones itself, they are random.",
            )
        else:
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
            notes=notes,
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
        self, model: LoadedModel, directory: Path, lowrank: Mapping[str, object] | None
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
            "transform": transform_to_json(model.transform),
        }
        if lowrank is not None:
            config["lowrank"] = dict(lowrank)
        path = directory / "config.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

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
    saved = find_lowrank(config, where=str(directory / "config.json"))
    files = find_weight_files(directory)
    header = read_header(files)
    if saved is not None:
        install_skeletons(module, saved.lowrank.layers, unfused=saved.lowrank.unfused)
    load_exactly(module, read_state_dicts(files), where=str(directory))
    refuse_non_finite(module, str(directory))
    names = config.get("class_names")
    return _describe(
        module.float().eval().to(options.device),
        str(directory),
        options,
        transform=transform or transform_from_json(config.get("transform")),
        storage_dtypes=floating_dtypes(header),
        files=files,
        class_names=tuple(str(name) for name in names) if isinstance(names, list) else None,
        factory=options.factory,
    )


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
    notes: tuple[str, ...] = (),
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
        notes=notes,
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
