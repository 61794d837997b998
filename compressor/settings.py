"""Everything a person can choose about a run, validated; the command line and manifests fill it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from compressor.errors import UsageError


@dataclass(frozen=True)
class PathOrName:
    """Marks a text that is a path where it names a file, and otherwise a name as of a hub.

    A manifest of jobs takes such paths, like all others, from its own directory.
    """


Reference = Annotated[str, PathOrName()]


class ModelSettings(BaseModel):
    """Which model, and what to know beside its name.

    Args:
        model: transformers directory or hub id, timm architecture or hub id or directory,
            ``path/to/file.py:factory``, or a directory that this package saved.
        checkpoint: Weights lying apart (.safetensors, .pt, .pth, .bin).
        factory: ``path/to/file.py:factory`` that rebuilds a saved plain torch model.
        input_size: Channels, height, width of the input.
        mean: Per-channel mean of the input normalization.
        std: Per-channel standard deviation of the input normalization.
        num_classes: Width of the classifier where nothing else tells it.
        trust_remote_code: Let transformers run code that comes with the checkpoint.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Reference
    checkpoint: Path | None = None
    factory: Reference | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None
    trust_remote_code: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class DataSettings(BaseModel):
    """Which data, and how it is read and split.

    Args:
        data: Class folders, a table or a directory of tables, a saved datasets directory, a hub id;
            for models that predict tokens also a text file or a directory of them.
        test_data: Other data to test on, where ``data`` shall not be.
        text_column: Column of the text, where the data has several.
        label_column: Column of the label, where it cannot be told.
        max_length: Longest sequence in tokens; the length of windows where tokens are predicted.
        calibration: Largest number of calibration samples; None takes 1024, or 128 windows.
        selection: Largest number of held-out samples that choices are judged on; None takes half
            as many as calibrate.
        limit: Largest number of test samples; of calibration samples too where only `measure` runs.
        batch_size: Samples a batch.
        strict: Refuse unreadable samples instead of skipping them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Reference
    test_data: Reference | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    calibration: Annotated[int, Field(ge=1)] | None = None
    selection: Annotated[int, Field(ge=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    strict: bool = False


class MethodSettings(BaseModel):
    """How ranks are chosen and layers factorized.

    Args:
        method: Name of a registered method.
        budget: One or several budgets such as ``layers=50%`` or ``size=40MB``.
        best_effort: Where a budget cannot be met, go on with the nearest that can.
        include: Patterns (shell style, on module names) of layers to factorize though they would
            be left dense by default.
        exclude: Patterns of layers to leave dense.
        gradients: Allow backward passes over the calibration data.
        conv_form: Form of convolutions k×k: ``channel``, ``spatial``, or ``auto`` for each its own;
            None takes the method's.
        rank_multiple: Ranks are rounded down to multiples of this.
        runtime: What models are timed in: ``eager``, ``compile`` or ``onnx``.
        blockwise: Measure language models one block at a time, with statistics on disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "nc1"
    budget: tuple[str, ...] = ()
    best_effort: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gradients: bool = True
    conv_form: Literal["channel", "spatial", "auto"] | None = None
    rank_multiple: Annotated[int, Field(ge=1)] = 1
    runtime: str = "eager"
    blockwise: bool = False


class CompressSettings(BaseModel):
    """A whole run of ``compress``.

    Args:
        model: Which model.
        data: Which data.
        method: How ranks are chosen.
        out: Directory to write.
        plan: A plan.json to replay instead of choosing ranks.
        recover: Steps of distillation of the factors after truncation, a batch of the training part
            each; 0 trains nothing.
        overwrite: Replace ``out`` if it exists.
        resume: Keep results beside ``out`` until it is written, and go on from those that are
            there.
        cache: Directory where results are kept instead, for this run and for others.
        seed: Seed of every draw.
        command: The command line as typed, for the report.
        job: Hash of the job of a batch that this is, for the report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    method: MethodSettings = MethodSettings()
    out: Path
    plan: Path | None = None
    recover: Annotated[int, Field(ge=0)] = 0
    overwrite: bool = False
    resume: bool = False
    cache: Path | None = None
    seed: int = 0
    command: str | None = None
    job: str | None = None


def check_target(method: MethodSettings, plan: Path | None) -> None:
    """Refuse a run that is not told how small to get, or is told twice.

    Raises:
        UsageError: If there is neither a budget nor a plan, or both.
    """
    if plan is None and not method.budget:
        raise UsageError(
            "Nothing says how small. Give --budget, for instance layers=50%, or --plan FILE."
        )
    if plan is not None and method.budget:
        raise UsageError("--plan already holds the ranks: leave out --budget, or leave out --plan.")


class StreamSettings(BaseModel):
    """A whole run of ``compress --stream``.

    Args:
        model: A transformers directory or hub id with safetensors files.
        data: Text that a language model is measured and evaluated on; None looks at weights alone.
        method: How ranks are chosen.
        out: Directory to write.
        plan: A plan.json to replay instead of choosing ranks.
        overwrite: Replace ``out`` if it exists.
        resume: Keep what was written beside ``out`` until it is whole, and go on from there.
        seed: Seed of every draw.
        command: The command line as typed, for the report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings | None = None
    method: MethodSettings = MethodSettings(method="svd-energy")
    out: Path
    plan: Path | None = None
    overwrite: bool = False
    resume: bool = False
    seed: int = 0
    command: str | None = None


class SweepSettings(BaseModel):
    """A whole run of ``sweep``.

    Args:
        model: Which model.
        data: Which data.
        method: What all methods have in common; its ``method`` and ``budget`` are not read.
        methods: Registered methods, each swept over all budgets.
        budgets: Budgets, one a point; empty makes a ladder.
        budget_kind: Kind of the ladder's budgets.
        points: Number of the ladder's budgets.
        out: Directory to write, or to go on in.
        cache: Directory where results are kept for good, for this run and for others; None keeps
            them beside ``out`` until it is written.
        seed: Seed of every draw.
        command: The command line as typed, for the report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    method: MethodSettings = MethodSettings()
    methods: tuple[str, ...] = ("nc1",)
    budgets: tuple[str, ...] = ()
    budget_kind: str = "layers"
    points: Annotated[int, Field(ge=1)] = 10
    out: Path
    cache: Path | None = None
    seed: int = 0
    command: str | None = None
