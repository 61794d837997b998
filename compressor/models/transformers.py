"""transformers directories and hub ids: classifiers and language models."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compressor.checkpoint.format import find_lowrank, read_config
from compressor.errors import CompressorError, ModelError
from compressor.layers.surgery import unfused_modules
from compressor.models.architectures import auto_class, task_of
from compressor.models.bounded import DENSE_OVER_STORED, bounded, refuse_absurd
from compressor.models.hub import is_hub_id, snapshot
from compressor.models.image_processor import config_input_size, image_transform
from compressor.models.loading import shape_mismatch
from compressor.models.quiet import quiet
from compressor.models.source import MODEL_SOURCES, LoadedModel, ModelOptions
from compressor.models.transformers_names import (
    conversions_of,
    in_memory_dtypes,
    without_expert_merges,
)
from compressor.models.weights import (
    PLAIN_FLOATS,
    TensorHeader,
    find_weight_files,
    floating_dtypes,
    hash_files,
    quantized_advice,
    read_header,
    refuse_non_finite,
    refuse_quantized,
    size_of,
)
from compressor.paths import worded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CARRIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "generation_config.json",
    "sentence_bert_config.json",
)
"""Files beside the weights that loading a saved directory needs."""


TIED_OVER_STORED = 3
"""Parameters of a model, tied ones counted twice, for each stored one; with room to spare."""


class TransformersSource:
    """Loads what ``from_pretrained`` loads, in float32, and writes what it will load again."""

    name = "transformers"

    def recognises(self, reference: str, options: ModelOptions) -> bool:
        """Return whether ``reference`` is a directory or hub id whose config has a model_type."""
        del options
        directory = Path(reference)
        if directory.is_dir():
            return "model_type" in read_config(directory)
        if not is_hub_id(reference):
            return False
        return "model_type" in read_config(snapshot(reference, weights=False))

    def load(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Load a classifier or language model with its weights.

        Raises:
            ModelError: If it is quantized, neither of both, incomplete, damaged or not finite.
        """
        directory = _locate(reference, weights=True)
        files = find_weight_files(directory)
        header = read_header(files)
        refuse_quantized(header, reference)
        config = _config(directory, reference, options)
        _shapes(config, header, reference, options, ratio=TIED_OVER_STORED)
        module = _from_pretrained(directory, config, reference, options)
        refuse_non_finite(module, reference)
        on_disk = floating_dtypes(header)
        return _describe(
            _to(module, options.device),
            reference,
            directory,
            options,
            storage_dtypes=in_memory_dtypes(module, on_disk),
            files=files,
        )

    def skeleton(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Build the model's shapes on the meta device from its config alone."""
        directory = _locate(reference, weights=False)
        config = _config(directory, reference, options)
        files: tuple[Path, ...] = ()
        with contextlib.suppress(ModelError):  # shapes need no weights; only their size is asked
            files = find_weight_files(directory)
        header: Mapping[str, TensorHeader] = {}
        with contextlib.suppress(ModelError):  # damage matters where weights are read
            header = read_header(files)
        module = _shapes(config, header, reference, options, ratio=TIED_OVER_STORED)
        return _describe(
            nn.Module.eval(module), reference, directory, options, files=files, hash_=False
        )

    def owns(self, module: nn.Module) -> bool:
        """Return whether ``module`` is a PreTrainedModel."""
        from transformers import PreTrainedModel

        return isinstance(module, PreTrainedModel)

    def describe(self, module: nn.Module) -> LoadedModel:
        """Describe a PreTrainedModel built in Python."""
        reference = type(module).__name__
        dtypes = {k: t.dtype for k, t in module.state_dict().items() if t.dtype in PLAIN_FLOATS}
        return _describe(module, reference, None, ModelOptions(), storage_dtypes=dtypes)

    def write_architecture(
        self, model: LoadedModel, directory: Path, lowrank: Mapping[str, object] | None
    ) -> None:
        """Write config.json with the block as ``quantization_config``, and the carried files."""
        config = copy.deepcopy(_pretrained(model.module).config)
        if lowrank is not None:
            config.quantization_config = dict(lowrank)
        elif hasattr(config, "quantization_config"):
            del config.quantization_config
        config.architectures = [type(model.module).__name__]
        config.dtype = cast("str | None", model.architecture.get("dtype", config.dtype))
        config.save_pretrained(directory)
        for path in model.carried:
            shutil.copyfile(path, directory / path.name)
        save = getattr(model.tokenizer, "save_pretrained", None)
        if save is not None and not model.carried:
            save(directory)

    def write_weights(
        self,
        model: LoadedModel,
        directory: Path,
        state: Mapping[str, Tensor],
        *,
        max_shard_size: str,
    ) -> None:
        """Write the weights under the names that ``save_pretrained`` gives them on disk."""
        module = _pretrained(model.module)
        # With a quantizer attached save_pretrained would drop the state dict it is given.
        quantizer = module.__dict__.pop("hf_quantizer", None)
        config = copy.deepcopy(module.config)
        known = module.__dict__.get("_weight_conversions")
        try:
            if unfused_modules(module):
                conversions = without_expert_merges(conversions_of(module))
                module.__dict__["_weight_conversions"] = conversions
            with quiet():
                module.save_pretrained(
                    directory, state_dict=dict(state), max_shard_size=max_shard_size
                )
        finally:
            module.config = config
            module.__dict__["_weight_conversions"] = known
            if quantizer is not None:
                module.hf_quantizer = quantizer

    def rebuild(
        self, directory: Path, config: Mapping[str, object], options: ModelOptions
    ) -> LoadedModel:
        """Load a saved directory through ``from_pretrained`` and the registered quantizer."""
        import compressor.hf  # noqa: F401  # registers the quantizer

        del config
        reference = str(directory)
        files = find_weight_files(directory)
        header = read_header(files)
        loaded = _config(directory, reference, options)
        auto = _saved_class(loaded, reference)
        _shapes(loaded, header, reference, options, ratio=DENSE_OVER_STORED, auto=auto)
        module = _from_pretrained(directory, loaded, reference, options, auto=auto)
        refuse_non_finite(module, reference)
        return _describe(
            _to(module, options.device),
            reference,
            directory,
            options,
            storage_dtypes=in_memory_dtypes(module, floating_dtypes(header)),
            files=files,
        )


def _pretrained(module: nn.Module) -> PreTrainedModel:
    from transformers import PreTrainedModel

    assert isinstance(module, PreTrainedModel)
    return module


def _to(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device)


def _locate(reference: str, *, weights: bool) -> Path:
    directory = Path(reference)
    return directory if directory.is_dir() else snapshot(reference, weights=weights)


def _config(directory: Path, reference: str, options: ModelOptions) -> PretrainedConfig:
    """Return the model's config, refusing quantized checkpoints and other numbers of classes."""
    from transformers import AutoConfig

    plain = read_config(directory)
    refuse_absurd(plain, f"{reference}/config.json")
    quantization = plain.get("quantization_config")
    if quantization and not find_lowrank(plain, where=str(directory / "config.json")):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ModelError(
            quantized_advice(f"{reference}: config.json has a quantization_config ({method})")
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # configs validate themselves, each by its own exceptions
        raise ModelError(
            f"{reference}: transformers cannot read its config.json: "
            f"{type(error).__name__}: {worded(error)}"
        ) from error
    if options.num_classes is not None and options.num_classes != config.num_labels:
        raise ModelError(
            f"{reference} has {config.num_labels} classes, but --num-classes says "
            f"{options.num_classes}. Leave --num-classes out: the config tells it."
        )
    return config


def _shapes(
    config: PretrainedConfig,
    header: Mapping[str, TensorHeader],
    reference: str,
    options: ModelOptions,
    *,
    ratio: float,
    auto: Any = None,
) -> PreTrainedModel:
    """Build a model on the meta device, no larger than its weight files account for.

    Raises:
        ModelError: If its config asks for more, or describes no model that can be built.
    """
    chosen = auto or auto_class(config, reference)
    try:
        with bounded(header, reference, ratio=ratio), torch.device("meta"), quiet():
            if hasattr(chosen, "from_config"):
                module: PreTrainedModel = chosen.from_config(
                    config, dtype=torch.float32, trust_remote_code=options.trust_remote_code
                )
            else:
                module = chosen(copy.deepcopy(config))
    except CompressorError:
        raise
    except Exception as error:  # constructors meet odd configs with whatever they run into
        raise ModelError(
            f"{reference}: its config.json describes no model that can be built: "
            f"{type(error).__name__}: {worded(error)}"
        ) from error
    return module


def _saved_class(config: PretrainedConfig, reference: str) -> Any:
    """Return what loads a directory that this package saved, be it a classifier or not.

    Its config names the class of the model that was compressed. A class that is no part of
    transformers came with the checkpoint; the Auto classes find its code.
    """
    import transformers

    name = next(iter(config.architectures or ()), "")
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return auto_class(config, reference)


def _from_pretrained(
    directory: Path,
    config: PretrainedConfig,
    reference: str,
    options: ModelOptions,
    *,
    auto: Any = None,
) -> PreTrainedModel:
    """Return the model in float32 and eval mode, every weight of it from the checkpoint."""
    try:
        with quiet():
            module, info = (auto or auto_class(config, reference)).from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=options.trust_remote_code,
            )
    except CompressorError:
        raise
    except Exception as error:  # damage shows wherever the framework first runs into it
        mismatch = None if auto else _first_mismatch(directory, config, reference)
        raise ModelError(
            mismatch or f"{reference}: transformers cannot load the weights: {worded(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{reference}: the checkpoint lacks {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}, which transformers would fill with random "
            "values. Expected a checkpoint fine-tuned with its head."
        )
    loaded: PreTrainedModel = module.eval()
    return loaded


def _first_mismatch(directory: Path, config: PretrainedConfig, reference: str) -> str | None:
    """Return what is wrong with the first tensor whose shape is not the config's, if any is."""
    with torch.device("meta"), quiet():
        module = auto_class(config, reference).from_config(config)
    own = module.state_dict()
    for key, entry in read_header(find_weight_files(directory)).items():
        if key in own and tuple(own[key].shape) != entry.shape:
            return shape_mismatch(str(directory), key, tuple(own[key].shape), entry.shape)
    return None


def _describe(
    module: nn.Module,
    reference: str,
    directory: Path | None,
    options: ModelOptions,
    *,
    storage_dtypes: Mapping[str, torch.dtype] | None = None,
    files: tuple[Path, ...] = (),
    hash_: bool = True,
) -> LoadedModel:
    model = _pretrained(module)
    config = model.config
    is_image = model.main_input_name == "pixel_values"
    task = task_of(type(model).__name__) or "classification"
    size = options.input_size or config_input_size(config) if is_image else None
    plain = read_config(directory) if directory else {}
    architecture: dict[str, object] = {
        "class": type(model).__name__,
        "dtype": plain.get("dtype", plain.get("torch_dtype")) if directory else config.dtype,
        "vocab_size": getattr(config, "vocab_size", None),
        "max_length": _longest(config),
        "pad_token_id": getattr(config, "pad_token_id", None),
        "decoder_start_token_id": getattr(config, "decoder_start_token_id", None),
        "input_size": size,
    }
    return LoadedModel(
        module=module,
        framework="transformers",
        reference=reference,
        modality="image" if is_image else "text",
        task=task,
        class_names=_class_names(config) if task == "classification" else None,
        num_classes=config.num_labels if task == "classification" else None,
        transform=image_transform(directory, size, options) if is_image else None,
        tokenizer=_tokenizer(directory, options) if directory and not is_image else None,
        storage_dtypes=storage_dtypes or {},
        heads=_heads(model),
        carried=_carried(directory, options) if directory else (),
        bytes_on_disk=size_of(files) if files else None,
        sha256=hash_files(files) if files and hash_ else None,
        architecture=architecture,
    )


def describe_pretrained(
    module: nn.Module,
    reference: str,
    options: ModelOptions,
    *,
    tokenizer: object,
    files: tuple[Path, ...],
    notes: tuple[str, ...],
) -> LoadedModel:
    """Describe a PreTrainedModel that another source read from ``files``."""
    dtypes = {k: t.dtype for k, t in module.state_dict().items() if t.dtype in PLAIN_FLOATS}
    found = _describe(module, reference, None, options, storage_dtypes=dtypes, files=files)
    return dataclasses.replace(found, tokenizer=tokenizer, notes=notes)


def _class_names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return id2label in order, or None where it holds only made-up names (LABEL_0 …)."""
    labels: dict[Any, str] = dict(config.id2label or {})
    classes = range(config.num_labels or 0)
    names = tuple(labels.get(index, "") for index in classes)
    made_up = tuple(f"LABEL_{index}" for index in classes)
    return None if not all(names) or names == made_up else names


def _longest(config: PretrainedConfig) -> int | None:
    """Return how many tokens the position table holds, two less where it starts after padding."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if isinstance(positions, int) and positions > 2 else None


def _heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the output embedding, and every layer with a matrix that lies outside the backbone."""
    heads: dict[str, None] = {}
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    backbone = model.base_model
    inside = {id(module) for module in backbone.modules()} if backbone is not model else set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_matrix = isinstance(weight, Tensor) and weight.ndim >= 2
        if module is output or (inside and is_matrix and id(module) not in inside):
            heads[name] = None
    return tuple(heads)


def _tokenizer(directory: Path, options: ModelOptions) -> object | None:
    from transformers import AutoTokenizer

    if not any(directory.glob("tokenizer*")) and not any(directory.glob("vocab.*")):
        return None
    try:
        with quiet():
            tokenizer: object = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=options.trust_remote_code
            )
    except Exception as error:  # the tokenizers library raises bare ones
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {worded(error)}") from error
    return tokenizer


def _carried(directory: Path, options: ModelOptions) -> tuple[Path, ...]:
    patterns = (*CARRIED, "*.py") if options.trust_remote_code else CARRIED
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return tuple(sorted(found))


MODEL_SOURCES.register("transformers")(TransformersSource())
