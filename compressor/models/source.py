"""What every model source gives the rest of the package, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.forward import Inputs, Task
from compressor.models.weights import write_state_dict
from compressor.registry import Registry

Modality = Literal["image", "text", "tensor"]


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes the model's input tensor [3, H, W]: resize, centre crop, normalize.

    Args:
        input_size: Channels, height and width of the input.
        mean: Per-channel mean in [0, 1] units.
        std: Per-channel standard deviation in [0, 1] units.
        interpolation: Name of the resampling filter, as timm and PIL call it.
        crop_pct: Share of the resized image that the centre crop keeps.
        crop_mode: ``center`` resizes the shorter side and crops the centre; ``squash`` resizes
            both sides to the input size, whatever the image's proportions.
        custom: A callable from a PIL image to the tensor [3, H, W] that a person's own factory
            returned. Where there is one it is used in place of all the rest.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"
    custom: Callable[..., object] | None = None


@dataclass(frozen=True)
class ModelOptions:
    """What a person may say about a model beside its reference.

    Args:
        checkpoint: Weights lying apart from the architecture.
        input_size: Channels, height, width; overrides the model's own.
        mean: Per-channel mean, overriding the model's own.
        std: Per-channel standard deviation, overriding the model's own.
        num_classes: Width of the classifier where neither name nor checkpoint tells it.
        factory: ``path/to/file.py:function`` that builds the module, for saved plain modules.
        trust_remote_code: Let transformers run code that comes with the checkpoint.
        device: Where the model runs.
    """

    checkpoint: Path | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_classes: int | None = None
    factory: str | None = None
    trust_remote_code: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what is needed to feed it and to save it again.

    Args:
        module: The network, in eval mode, floating-point weights in float32.
        framework: Name of the source that loaded it.
        reference: What the user wrote to name it.
        modality: What the model takes.
        task: What it predicts: a class of the sample, or tokens.
        class_names: Name of each logit, where the checkpoint knows them.
        num_classes: Number of logits, where it is known.
        transform: Image preprocessing, for models that take images.
        tokenizer: The transformers tokenizer, for models that take text.
        storage_dtypes: Floating-point type that each tensor has in the checkpoint file, by state
            dict name. Saving rounds to these, so that a half-precision file stays one.
        heads: Names of the modules that make the logits.
        carried: Files (tokenizer, preprocessing …) to copy beside the saved weights.
        bytes_on_disk: Size of the checkpoint's weight files, where there are any.
        sha256: Hash of the checkpoint's weight files, where there are any.
        architecture: What rebuilds the module without weights: the keys belong to the source,
            but for ``vocab_size`` and ``input_size``, which tell what synthetic inputs look like.
        notes: What a person should know about how the model was loaded.
    """

    module: nn.Module
    framework: str
    reference: str
    modality: Modality
    task: Task = "classification"
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    transform: ImageTransform | None = None
    tokenizer: object | None = None
    storage_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    carried: tuple[Path, ...] = ()
    bytes_on_disk: int | None = None
    sha256: str | None = None
    architecture: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def example_inputs(self, batch_size: int = 1, length: int = 64) -> Inputs:
        """Return synthetic inputs of the right form, for counting FLOPs and for probes.

        Args:
            batch_size: Number of samples.
            length: Tokens per sample, for models that take text; cut to what the model allows.

        Returns:
            ``input_ids`` and (but on meta) ``attention_mask`` [batch_size, length] for text, with
            ``decoder_input_ids`` [batch_size, length − 1] for an encoder-decoder, else
            a tensor [batch_size, *input_size]; the same at every call, on the module's device.

        Raises:
            ModelError: If nothing tells the size of the input.
        """
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        if self.modality == "text":
            vocabulary = self.architecture.get("vocab_size")
            longest = self.architecture.get("max_length")
            if not isinstance(vocabulary, int):
                raise ModelError(f"{self.reference}: its config names no vocab_size.")
            if isinstance(longest, int):
                length = min(length, longest)
            ids = torch.randint(0, vocabulary, (batch_size, length), generator=generator)
            padding = self.architecture.get("pad_token_id")
            if isinstance(padding, int):
                # A padding id in the middle would shift RoBERTa's positions past their table.
                ids[ids == padding] = (padding + 1) % vocabulary
            inputs = {"input_ids": ids.to(device)}
            if device.type != "meta":  # there a mask without values cannot be looked at
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if self.task == "seq2seq":  # one token shorter, as in the data: see `packed_batches`
                inputs["decoder_input_ids"] = inputs["input_ids"][:, 1:]
            return inputs
        size = self.transform.input_size if self.transform else self.architecture.get("input_size")
        if not isinstance(size, tuple):
            raise ModelError(
                f"{self.reference}: nothing tells the size of its input. Pass --input-size C,H,W, "
                "or let the factory return (module, transform)."
            )
        return torch.randn(batch_size, *size, generator=generator).to(device)


class ModelSource(Protocol):
    """One place checkpoints come from and go back to. A source is one file."""

    name: str

    def recognises(self, reference: str, options: ModelOptions) -> bool:
        """Return whether this source can load ``reference`` (a cheap look, no weights)."""
        ...

    def load(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Load the model with its weights."""
        ...

    def skeleton(self, reference: str, options: ModelOptions) -> LoadedModel:
        """Build the model's shapes on the meta device, without reading weights where possible."""
        ...

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module built in Python belongs to this source's framework."""
        ...

    def describe(self, module: nn.Module) -> LoadedModel:
        """Describe such a module without changing it."""
        ...

    def write_architecture(
        self, model: LoadedModel, directory: Path, lowrank: Mapping[str, object] | None
    ) -> None:
        """Write config.json and carried files, everything but weights.

        Args:
            model: The model; its module is factorized, or dense again.
            directory: Where to write.
            lowrank: The block of a factorized model; None for a dense one.
        """
        ...

    def write_weights(
        self,
        model: LoadedModel,
        directory: Path,
        state: Mapping[str, Tensor],
        *,
        max_shard_size: str,
    ) -> None:
        """Write the state dict ``state`` as safetensors, under the framework's names on disk."""
        ...

    def rebuild(
        self, directory: Path, config: Mapping[str, object], options: ModelOptions
    ) -> LoadedModel:
        """Load a directory that this package wrote, factorized layers and all.

        Without a low-rank block in ``config`` the model is dense.
        """
        ...


class NamesAsBuilt:
    """A source whose weights have the names of the state dict on disk too."""

    def write_weights(
        self,
        model: LoadedModel,
        directory: Path,
        state: Mapping[str, Tensor],
        *,
        max_shard_size: str,
    ) -> None:
        """Write model.safetensors, in shards where it is larger than one may be."""
        del model
        write_state_dict(state, directory, max_shard_size=max_shard_size)


MODEL_SOURCES: Registry[ModelSource] = Registry(
    "model source",
    group="model_sources",
    modules=(
        "compressor.models.transformers",
        "compressor.models.timm",
        "compressor.models.module",
    ),
)
