"""timm models: an architecture name with or without --checkpoint, a hub id, a local directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.checkpoint.format import find_lowrank, read_config
from compressor.errors import ModelError
from compressor.layers.surgery import install_skeletons
from compressor.models.bounded import DENSE_OVER_STORED, bounded, refuse_absurd
from compressor.models.hub import is_hub_id, snapshot
from compressor.models.imagenet import imagenet_synsets
from compressor.models.loading import load_exactly
from compressor.models.source import (
    MODEL_SOURCES,
    ImageTransform,
    LoadedModel,
    ModelOptions,
    NamesAsBuilt,
)
from compressor.models.timm_build import create, known_architecture
from compressor.models.timm_config import as_dict, classifier_names, label_names, pretrained_cfg
from compressor.models.weights import (
    PLAIN_FLOATS,
    TensorHeader,
    find_weight_files,
    floating_dtypes,
    hash_files,
    read_header,
    read_state_dicts,
    refuse_non_finite,
    refuse_quantized,
    size_of,
)

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
DIRECTORY_PREFIX = "local-dir:"
CONFIG_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
LOCAL_KEYS = ("url", "file", "hf_hub_id", "source", "state_dict", "architecture")
"""Keys of a pretrained_cfg that say where the dense weights came from."""


class TimmSource(NamesAsBuilt):
    """Builds a timm architecture, and loads its weights strictly."""

    name = "timm"

    def recognises(self, reference: str, options: ModelOptions) -> bool:
        """Return whether timm knows the name, or the directory's config has an architecture."""
        del options
        if reference.startswith((*HUB_PREFIXES, DIRECTORY_PREFIX)):
            return True
        directory = Path(reference)
        if directory.is_dir():
            return "architecture" in read_config(directory)
        if is_hub_id(reference):
            return "architecture" in read_config(snapshot(reference, weights=False))
        import timm

        return bool(timm.is_model(reference))

    def load(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Load the model with its weights in float32.

        Raises:
            ModelError: If weights are missing, or do not fit the architecture.
        """
        directory, config = _locate(reference, weights=options.checkpoint is None)
        files = _weight_files(reference, directory, options)
        header = read_header(files)
        refuse_quantized(header, str(files[0]))
        module = _build(reference, config, options, header)
        state = read_state_dicts(files)
        foreign = options.checkpoint is not None
        notes = load_exactly(module, state, where=str(files[0]), by_position=foreign)
        dtypes = floating_dtypes(header)
        if notes:
            dtypes = _by_position(module, header)
        refuse_non_finite(module, reference)
        return _describe(
            module.eval().to(options.device),
            reference,
            options,
            storage_dtypes=dtypes,
            files=files,
            notes=notes,
        )

    def skeleton(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Build the model's shapes on the meta device; of a checkpoint only the header is read."""
        directory, config = _locate(reference, weights=False)
        files = (options.checkpoint,) if options.checkpoint else _lying_in(directory)
        header = read_header(files)
        with torch.device("meta"):
            module = _build(reference, config, options, header)
        return _describe(module.eval(), reference, options, files=files, hash_=False)

    def owns(self, module: nn.Module) -> bool:
        """Return whether timm built ``module``."""
        return isinstance(getattr(module, "pretrained_cfg", None), dict)

    def describe(self, module: nn.Module) -> LoadedModel:
        """Describe a timm model built in Python."""
        dtypes = {k: t.dtype for k, t in module.state_dict().items() if t.dtype in PLAIN_FLOATS}
        reference = str(pretrained_cfg(module).get("architecture", type(module).__name__))
        return _describe(module, reference, ModelOptions(), storage_dtypes=dtypes)

    def write_architecture(
        self, model: LoadedModel, directory: Path, lowrank: Mapping[str, object] | None
    ) -> None:
        """Write the config.json that timm's ``local-dir:`` reads, with the block as ``lowrank``."""
        pretrained = {
            key: value
            for key, value in pretrained_cfg(model.module).items()
            if key not in LOCAL_KEYS and value is not None
        }
        if model.transform is not None:
            values = vars(model.transform)
            pretrained |= {key: values[key] for key in CONFIG_KEYS}
        config = {
            "architecture": model.architecture["architecture"],
            "num_classes": model.num_classes,
            "num_features": getattr(model.module, "num_features", None),
            "model_args": model.architecture["model_args"],
            "pretrained_cfg": pretrained | {"num_classes": model.num_classes, "custom_load": False},
        }
        if lowrank is not None:
            config["lowrank"] = dict(lowrank)
        named = label_names(model.module)
        if named is not None:
            config["label_names"] = named
        path = directory / "config.json"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def rebuild(
        self, directory: Path, config: Mapping[str, object], options: ModelOptions
    ) -> LoadedModel:
        """Build the dense architecture, swap the low-rank layers in, and load strictly."""
        saved = find_lowrank(config, where=str(directory / "config.json"))
        files = find_weight_files(directory)
        header = read_header(files)
        module = _build(str(directory), config, options, {}, stored=header)
        if saved is not None:
            install_skeletons(module, saved.lowrank.layers, unfused=saved.lowrank.unfused)
        load_exactly(module, read_state_dicts(files), where=str(directory))
        refuse_non_finite(module, str(directory))
        return _describe(
            module.eval().to(options.device),
            str(directory),
            options,
            storage_dtypes=floating_dtypes(header),
            files=files,
        )


def _locate(reference: str, *, weights: bool) -> tuple[Path | None, dict[str, object]]:
    """Return the directory that holds config and weights, where there is one, and its config."""
    reference = reference.removeprefix(DIRECTORY_PREFIX)
    for prefix in HUB_PREFIXES:
        reference = reference.removeprefix(prefix)
    directory = Path(reference)
    if not directory.is_dir():
        if not is_hub_id(reference):
            return None, {}
        directory = snapshot(reference, weights=weights)
    return directory, read_config(directory)


def _weight_files(
    reference: str, directory: Path | None, options: ModelOptions
) -> tuple[Path, ...]:
    if options.checkpoint is not None:
        return (options.checkpoint,)
    if directory is not None:
        return find_weight_files(directory)
    import timm

    cfg = timm.get_pretrained_cfg(reference)
    hub_id = getattr(cfg, "hf_hub_id", None)
    advice = "Pass weights with --checkpoint FILE (.safetensors, .pt, .pth or .bin)."
    if not hub_id or "/" not in hub_id:
        raise ModelError(f"{reference}: timm has no pretrained weights for it. {advice}")
    try:
        return find_weight_files(snapshot(hub_id, weights=True))
    except ModelError as error:
        raise ModelError(
            f"{reference}: its pretrained weights ({hub_id}) are neither in the hub's cache nor "
            f"can they be fetched. {advice}"
        ) from error


def _lying_in(directory: Path | None) -> tuple[Path, ...]:
    """Return the weight files of a directory; none where only its config was fetched."""
    if directory is None:
        return ()
    with contextlib.suppress(ModelError):
        return find_weight_files(directory)
    return ()


def _build(
    reference: str,
    config: Mapping[str, object],
    options: ModelOptions,
    header: Mapping[str, TensorHeader],
    *,
    stored: Mapping[str, TensorHeader] | None = None,
) -> nn.Module:
    """Build the architecture without weights, as wide as the checkpoint's classifier.

    Args:
        reference: What the user wrote.
        config: Parsed config.json; empty where the reference names the architecture.
        options: Overrides.
        header: Tensors of a dense checkpoint, whose classifier tells the number of classes.
        stored: Tensors of a factorized one, which the model is to be in proportion to.

    Raises:
        ModelError: If timm cannot build it, or the config asks for what the weights do not hold.
    """
    from timm.models import PretrainedCfg

    arguments: dict[str, Any] = {}
    name = reference
    if config:
        refuse_absurd(config, f"{reference}/config.json")
        recorded = config.get("model_args")
        arguments |= recorded if isinstance(recorded, dict) else {}
        name = known_architecture(config, arguments, reference)
        cfg = {**as_dict(config.get("pretrained_cfg")), "architecture": name}
        cfg.setdefault("num_classes", config.get("num_classes"))
        if "label_names" in config:
            cfg["label_names"] = config["label_names"]
        known = PretrainedCfg.__dataclass_fields__
        overlay = {key: value for key, value in cfg.items() if key in known}
        if isinstance(overlay.get("input_size"), list):
            overlay["input_size"] = tuple(overlay["input_size"])  # JSON has lists, timm tuples
        arguments["pretrained_cfg"] = overlay
        arguments.setdefault("num_classes", overlay.get("num_classes"))
    if options.input_size is not None:
        arguments |= _size_arguments(name, options.input_size)
    if config:
        ratio = DENSE_OVER_STORED if stored else 2
        with bounded(stored or header, reference, ratio=ratio), torch.device("meta"):
            create(name, arguments, reference)
    classes = options.num_classes or _classes_in(name, arguments, header)
    if classes is not None:
        arguments["num_classes"] = classes
    return create(name, arguments, reference)


def _size_arguments(name: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """Return what create_model needs for another input size: convolutions take any, others not."""
    import timm

    arguments: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(name)
    if size[0] != 3:
        arguments["in_chans"] = size[0]
    if getattr(cfg, "fixed_input_size", False):
        arguments["img_size"] = size[1:]
    return arguments


def _classes_in(
    name: str, arguments: Mapping[str, Any], header: Mapping[str, TensorHeader]
) -> int | None:
    """Return the number of classes that the checkpoint's classifier has.

    Where the names are another code base's, the tensor at the classifier's position tells it.
    """
    if not header:
        return None
    with torch.device("meta"):
        module = create(name, arguments, name)
    names = list(module.state_dict())
    for head in classifier_names(module):
        key = f"{head}.weight"
        if key in header:
            return header[key].shape[0]
        if key in names and len(names) == len(header):
            at = list(header.values())[names.index(key)]
            if len(at.shape) == module.state_dict()[key].ndim:
                return at.shape[0]
    return None


def _by_position(module: nn.Module, header: Mapping[str, TensorHeader]) -> dict[str, torch.dtype]:
    pairs = zip(module.state_dict(), header.values(), strict=True)
    return floating_dtypes(dict(pairs))


def _model_arguments(module: nn.Module, options: ModelOptions) -> dict[str, Any]:
    """Return the arguments of create_model that rebuild ``module``."""
    recorded = as_dict(getattr(module, "_model_args", None))
    arguments = {
        key: value for key, value in recorded.items() if key != "num_classes" and _is_plain(value)
    }
    if options.input_size is not None:
        arguments |= _size_arguments(_architecture(module), options.input_size)
    return arguments


def _architecture(module: nn.Module) -> str:
    return str(pretrained_cfg(module)["architecture"])


def _is_plain(value: object) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return value is not None
    return False


def _describe(
    module: nn.Module,
    reference: str,
    options: ModelOptions,
    *,
    storage_dtypes: Mapping[str, torch.dtype] | None = None,
    files: tuple[Path, ...] = (),
    hash_: bool = True,
    notes: tuple[str, ...] = (),
) -> LoadedModel:
    num_classes = getattr(module, "num_classes", None)
    named = label_names(module)
    names = tuple(named) if named else imagenet_synsets(num_classes or 0)
    return LoadedModel(
        module=module,
        framework="timm",
        reference=reference,
        modality="image",
        class_names=names if names and len(names) == num_classes else None,
        num_classes=num_classes,
        transform=_transform(module, options),
        storage_dtypes=storage_dtypes or {},
        heads=classifier_names(module),
        bytes_on_disk=size_of(files) if files else None,
        sha256=hash_files(files) if files and hash_ else None,
        architecture={
            "architecture": _architecture(module),
            "model_args": _model_arguments(module, options),
        },
        notes=notes,
    )


def _transform(module: nn.Module, options: ModelOptions) -> ImageTransform:
    from timm.data.config import resolve_model_data_config

    resolved = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    size = options.input_size or _built_size(module) or tuple(resolved["input_size"])
    mode = resolved.get("crop_mode")
    return ImageTransform(
        input_size=(int(size[0]), int(size[1]), int(size[2])),
        mean=options.mean or tuple(resolved["mean"]),
        std=options.std or tuple(resolved["std"]),
        interpolation=resolved["interpolation"],
        crop_pct=resolved["crop_pct"],
        crop_mode="squash" if mode == "squash" else "center",
    )


def _built_size(module: nn.Module) -> tuple[int, int, int] | None:
    """Return the input size that the model was built for, where it is another than its config's."""
    embedding = getattr(module, "patch_embed", None)
    recorded = as_dict(getattr(module, "_model_args", None))
    size = recorded.get("img_size") or getattr(embedding, "img_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    channels = recorded.get("in_chans") or pretrained_cfg(module)["input_size"][0]
    return int(channels), int(height), int(width)


MODEL_SOURCES.register("timm")(TimmSource())
