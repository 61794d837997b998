"""Exporting a model: write beside, compare outputs, then rename."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from compressor.checkpoint.export.exporter import EXPORTERS, Exporter
from compressor.checkpoint.export.logits import as_function, named
from compressor.checkpoint.export.tracing import tracing
from compressor.checkpoint.load import load_saved
from compressor.checkpoint.save import refuse_existing_output, refuse_inputs, written_whole
from compressor.errors import MissingExtraError, ModelError, UsageError
from compressor.forward import Inputs, batch_length
from compressor.models import LoadedModel, ModelOptions, describe, load_model
from compressor.progress import Progress
from compressor.schema import ExportReport
from compressor.settings import ModelSettings

EXTRA = "'compressor[export]'"
SAMPLES = 3
"""Samples that outputs are compared on, beside a single one."""


def export(
    model: nn.Module | str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    inputs: Inputs | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a compressed model so that it runs without this package, and check what was written.

    Args:
        model: A factorized module, or a directory that this package saved (plain torch modules
            must be given as modules).
        to: ``onnx``, ``torch-export``, ``dense`` (a directory) or ``safetensors``.
        out: File or directory to write; whole or not at all.
        inputs: Two or more samples to trace and compare on; None makes synthetic ones where the
            model tells what they look like.
        overwrite: Replace ``out``.

    Returns:
        What was written, and how far its outputs are off.

    Raises:
        UnknownNameError: If there is no such format.
        MissingExtraError: If an optional package is not installed.
        UsageError: If the file's name does not end as the format's files do.
        OutputExistsError: If ``out`` exists and may not be replaced.
        ModelError: If the format cannot hold the model, or its outputs differ.
    """
    if isinstance(model, nn.Module):
        found = describe(model)
        model.eval()
    else:
        found = load_saved(Path(model), ModelOptions())
    return export_loaded(found, to, Path(out), inputs=inputs, overwrite=overwrite)


def export_reference(
    settings: ModelSettings,
    to: str,
    out: Path,
    *,
    overwrite: bool,
    batch_size: int,
    samples: int,
    progress: Progress,
) -> ExportReport:
    """Load the model that ``settings`` names and export it; see `export`.

    Raises:
        CompressorError: As `export`, or if the model cannot be loaded.
    """
    refuse_inputs(out, (settings.model, settings.checkpoint, settings.factory))
    refuse_early(EXPORTERS.get(to), out, overwrite=overwrite)
    loaded = load_model(settings.model_copy(update={"device": "cpu"}))
    progress.note(f"Writing {to} and comparing its outputs.")
    return export_loaded(
        loaded, to, out, overwrite=overwrite, batch_size=batch_size, samples=samples
    )


def export_loaded(
    model: LoadedModel,
    to: str,
    out: Path,
    *,
    inputs: Inputs | None = None,
    overwrite: bool = False,
    batch_size: int = 2,
    samples: int = SAMPLES,
) -> ExportReport:
    """Export a model with what is known of it; see `export`.

    Args:
        model: The model, on the CPU.
        to: Name of a registered format.
        out: File or directory to write.
        inputs: Samples to trace and compare on; None makes synthetic ones.
        overwrite: Replace ``out``.
        batch_size: Synthetic samples to trace with.
        samples: Synthetic samples to compare on, beside a single one.
    """
    exporter = EXPORTERS.get(to)
    out = Path(os.path.abspath(out))
    refuse_early(exporter, out, overwrite=overwrite)
    example, checks = _inputs(model, inputs, batch_size, samples)
    started = perf_counter()
    difference, tolerance = 0.0, 0.0
    with written_whole(out) as temporary:
        exporter.write(model, example, temporary)
        for given in checks:
            off, allowed = _compare(model, exporter, temporary, given)
            difference, tolerance = max(difference, off), max(tolerance, allowed)
        size = _size(temporary)
    return ExportReport(
        model=model.reference,
        to=to,
        out=str(out),
        bytes=size,
        parameters=sum(p.numel() for p in model.module.parameters()),
        difference=difference,
        tolerance=tolerance,
        samples=sum(batch_length(given) for given in checks),
        seconds=perf_counter() - started,
        notes=() if exporter.note is None else (exporter.note,),
    )


def refuse_early(exporter: Exporter, out: Path, *, overwrite: bool) -> None:
    """Refuse what can never be written, before any work is done.

    Raises:
        MissingExtraError: If a package of the format is not installed; with the pip command.
        UsageError: If the file's name does not end as the format's files do.
        OutputExistsError: If ``out`` exists and may not be replaced.
    """
    if any(importlib.util.find_spec(package) is None for package in exporter.packages):
        raise MissingExtraError(f"Export to {exporter.name}", EXTRA)
    if exporter.suffix is not None and out.suffix != exporter.suffix:
        raise UsageError(
            f"{exporter.name} writes a file that ends in {exporter.suffix}, found {out.name}. "
            f"Pass --out {out.stem}{exporter.suffix}."
        )
    refuse_existing_output(out, directory=exporter.suffix is None, overwrite=overwrite)


def _inputs(
    model: LoadedModel, inputs: Inputs | None, batch_size: int, samples: int
) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], ...]]:
    """Return the inputs to trace with, and those to compare on: other numbers of samples."""
    if inputs is None:
        # Both sizes of a traced batch must differ from 0 and 1, which tracers make constants.
        example = named(model.example_inputs(max(batch_size, 2), length=16))
        others = (model.example_inputs(samples, length=11), model.example_inputs(1, length=7))
        return example, tuple(named(given) for given in others)
    example = named(inputs)
    if batch_length(example) < 2:
        raise ModelError("Export traces with two or more samples; inputs holds one. Give more.")
    return example, (example, {key: value[:1] for key, value in example.items()})


def _compare(
    model: LoadedModel, exporter: Exporter, path: Path, inputs: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Return the largest difference between both outputs, and what is allowed.

    Raises:
        ModelError: If the outputs differ by more.
    """
    with torch.no_grad():
        expected: Tensor = as_function(model.module, inputs)(**inputs)
    with tracing(exporter.name, model):
        found = exporter.run(model, path, dict(inputs))
    if found.shape != expected.shape:
        raise ModelError(
            f"{exporter.name}: the written model makes outputs {tuple(found.shape)}, the one in "
            f"memory {tuple(expected.shape)}; the batch is not dynamic. Nothing was kept."
        )
    difference = float((found.float() - expected.float()).abs().max())
    allowed = exporter.tolerance(model) * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ModelError(
            f"{exporter.name}: the written model's outputs differ from the one in memory by "
            f"{difference:.3g}; expected at most {allowed:.3g}. Nothing was kept."
        )
    return difference, allowed


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
