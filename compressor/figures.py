"""What a run tells of its model and data: the parts that every report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from compressor.data import LabelledData, Split
from compressor.evaluation.flops import count_flops
from compressor.evaluation.loop import Evaluation
from compressor.forward import Forward
from compressor.methods.measurement import Measurement
from compressor.models import LoadedModel
from compressor.schema import ClassFigures, DataFigures, DenseLayer, ModelFigures, SplitFigures

DEFAULT_LENGTH = 128
"""Tokens at which FLOPs of text models are counted where --max-length does not say."""

REPORTED_PACKAGES = ("compressor", "torch", "transformers", "timm", "safetensors", "numpy")


@dataclass(frozen=True)
class Loaded:
    """A model and the data it runs on."""

    model: LoadedModel
    data: LabelledData
    forward: Forward

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about how either was read."""
        return (*self.model.notes, *self.data.notes)


def model_figures(
    loaded: Loaded, found: Evaluation, layer_parameters: int, size: int | None
) -> ModelFigures:
    """Return a model's quality and cost.

    Args:
        loaded: The model, with the data that its FLOPs are counted at.
        found: How it fares on the test data.
        layer_parameters: Weights of the layers that can be factorized.
        size: Bytes of the weight files, where there are any.
    """
    return ModelFigures(
        accuracy=found.accuracy,
        loss=found.loss,
        parameters=parameters(loaded.model.module),
        layer_parameters=layer_parameters,
        bytes=size,
        flops=flops(loaded),
        kl_to_dense=found.kl_to_dense,
        agreement=found.agreement,
        per_class=_class_figures(loaded.data.class_names, found),
    )


def _class_figures(names: Sequence[str], found: Evaluation) -> tuple[ClassFigures, ...]:
    """Return the accuracy of each class of the data; a class beyond its names is numbered."""
    return tuple(
        ClassFigures(
            name=names[index] if index < len(names) else str(index),
            samples=counted.samples,
            accuracy=counted.correct / counted.samples if counted.samples else None,
        )
        for index, counted in enumerate(found.per_class)
    )


def flops(loaded: Loaded) -> int:
    """Return the FLOPs of one sample, at the length of the test data's first batch."""
    inputs, _ = next(iter(loaded.data.test))
    first = loaded.model.example_inputs(batch_size=1, length=_length(inputs))
    return count_flops(loaded.model.module, first)[0]


def _length(inputs: object) -> int:
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    return int(ids.shape[1]) if isinstance(ids, torch.Tensor) else DEFAULT_LENGTH


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def data_figures(data: LabelledData) -> DataFigures:
    """Return size and hash of every split."""

    def figures(split: Split) -> SplitFigures:
        return SplitFigures(samples=len(split), sha256=split.sha256)

    return DataFigures(
        reference=data.reference,
        classes=len(data.class_names),
        calibration=figures(data.calibration),
        selection=figures(data.selection),
        test=figures(data.test),
        notes=data.notes,
    )


def left_dense(found: Measurement) -> tuple[DenseLayer, ...]:
    """Return the layers that are no candidates, with the reason of each."""
    return tuple(
        DenseLayer(name=name, reason=reason) for name, reason in found.candidates.left_dense.items()
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
