"""What a run tells of its model and data: the parts that every report is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

import torch
from torch import nn

from compressor.data import LabelledData, Split
from compressor.evaluation.flops import count_flops
from compressor.evaluation.loop import Evaluation
from compressor.evaluation.metrics.metric import scores
from compressor.forward import Forward
from compressor.methods.measurement import Measurement
from compressor.models import LoadedModel
from compressor.schema import (
    ClassFigures,
    DataFigures,
    DenseLayer,
    ModelFigures,
    QualityFigures,
    SplitFigures,
)

DEFAULT_LENGTH = 128
"""Tokens at which FLOPs of text models are counted where --max-length does not say."""

LARGEST_EXPONENT = 700.0
"""exp of more does not fit a float64."""

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
        **quality_figures(found, loaded.data).model_dump(),
        parameters=parameters(loaded.model.module),
        layer_parameters=layer_parameters,
        bytes=size,
        flops=flops(loaded),
    )


def quality_figures(found: Evaluation, data: LabelledData) -> QualityFigures:
    """Return how a model fares, without its cost.

    Args:
        found: How it fares on the test data.
        data: The data, for the names of its classes and the size of its texts.
    """
    return QualityFigures(
        accuracy=found.accuracy,
        loss=found.loss,
        kl_to_dense=found.kl_to_dense,
        agreement=found.agreement,
        **perplexities(found, data.test_bytes),
        metrics=metric_figures(found),
        per_class=_class_figures(data.class_names, found),
    )


def metric_figures(found: Evaluation) -> dict[str, float]:
    """Return every quality metric that has a meaning on what was evaluated, by name."""
    return {} if found.predictions is None else scores(found.predictions)


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


def doubts(found: Evaluation, classes: int) -> tuple[str, ...]:
    """Return a note where a dense model does no better than guessing, else nothing.

    Guessing among C classes is right 1/C of the time; a model within two standard errors of that
    most likely got labels in another order than its own, or inputs prepared for another model.
    """
    if found.accuracy is None or classes < 2:
        return ()
    chance = 1 / classes
    error = math.sqrt(chance * (1 - chance) / found.samples)
    if found.accuracy > chance + 2 * error:
        return ()
    return (
        f"The model is right on {found.accuracy:.1%} of {found.samples} test samples, no better "
        f"than guessing among {classes} classes. Check that the labels mean its classes, and that "
        "it is given its inputs as it was trained on them.",
    )


class Perplexities(TypedDict):
    """Figures of a model that predicts tokens; None of one that does not."""

    perplexity: float | None
    byte_perplexity: float | None
    tokens: int | None


def perplexities(found: Evaluation, size: int | None) -> Perplexities:
    """Return exp of the loss per token and per byte.

    Args:
        found: How the model fares.
        size: UTF-8 bytes of the predicted text, where they are known.
    """
    if found.tokens is None or found.loss is None:
        return Perplexities(perplexity=None, byte_perplexity=None, tokens=None)
    total = found.loss * found.tokens
    return Perplexities(
        perplexity=_exp(found.loss),
        byte_perplexity=_exp(total / size) if size else None,
        tokens=found.tokens,
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf


def flops(loaded: Loaded) -> int:
    """Return the FLOPs of one sample, at the length of the test data's first batch."""
    first = loaded.model.example_inputs(batch_size=1, length=example_length(loaded.data))
    return count_flops(loaded.model.module, first)[0]


def example_length(data: LabelledData) -> int:
    """Return the tokens a text has where costs are counted: the test data's first batch's."""
    inputs, _ = next(iter(data.test))
    return _length(inputs)


def _length(inputs: object) -> int:
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    return int(ids.shape[1]) if isinstance(ids, torch.Tensor) else DEFAULT_LENGTH


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def data_figures(data: LabelledData) -> DataFigures:
    """Return size and hash of every split."""
    return DataFigures(
        reference=data.reference,
        classes=len(data.class_names),
        calibration=split_figures(data.calibration),
        selection=split_figures(data.selection),
        test=split_figures(data.test),
        notes=data.notes,
    )


def split_figures(split: Split) -> SplitFigures:
    """Return size and hash of one split."""
    return SplitFigures(samples=len(split), sha256=split.sha256)


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
