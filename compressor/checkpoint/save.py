"""Writing a model directory: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from compressor.checkpoint.format import LowRankConfig, find_lowrank, read_config
from compressor.checkpoint.integrity import write_integrity
from compressor.checkpoint.probe import take_probe
from compressor.checkpoint.storage import cast_state
from compressor.checkpoint.whole import (
    explained,
    flush,
    move_into_place,
    open_to_others,
    remove_leftovers,
    sibling,
    write_file,
    written_whole,
)
from compressor.errors import CheckpointError, OutputExistsError
from compressor.forward import Inputs
from compressor.models.source import MODEL_SOURCES, LoadedModel
from compressor.paths import state

__all__ = [
    "refuse_existing",
    "refuse_existing_file",
    "refuse_existing_output",
    "refuse_inputs",
    "remove_leftovers",
    "save_directory",
    "stamped",
    "write_file",
    "written_whole",
]

ExtraFiles = Mapping[str, str] | Callable[[int], Mapping[str, str]]

MARGIN = 1 << 20
"""Bytes that config, reports and file headers may take beside the weights."""


def save_directory(
    model: LoadedModel,
    directory: Path,
    *,
    lowrank: LowRankConfig,
    extra_files: ExtraFiles | None = None,
    overwrite: bool = False,
    max_shard_size: str = "5GB",
    example: Inputs | None = None,
) -> int:
    """Write a factorized model as a directory of its framework.

    Everything is written into a temporary sibling directory, flushed to disk and renamed at the
    end, so that ``directory`` is never half written. integrity.json records the hash of every
    file, and the model's logits on a few made-up inputs, for `compressor verify`.

    Args:
        model: The model; its module is already factorized.
        directory: Where to write.
        lowrank: Which layers were factorized.
        extra_files: Text of further files by name (plan.json, report.json, README.md), or a
            function that returns it given the size of the weight files in bytes.
        overwrite: Replace ``directory`` if compressor wrote it, or if it is empty.
        max_shard_size: Largest weight file, as huggingface_hub writes sizes.
        example: Inputs of one or more samples, of which the made-up inputs take their form and
            nothing else; None asks the model.

    Returns:
        Size of the weight files in bytes.

    Raises:
        OutputExistsError: If ``directory`` exists and may not be replaced.
        CheckpointError: If there is no space, no permission, or the disk fails.
        LayerError: If a weight does not fit its storage type.
    """
    directory = Path(os.path.abspath(directory))  # a symlink's target is not what is replaced
    refuse_existing(directory, overwrite=overwrite)
    source = MODEL_SOURCES.get(model.framework)
    state = cast_state(model.module, model.storage_dtypes)
    probe = take_probe(model, example)
    with explained(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(directory.parent, state, model)
        with sibling(directory) as temporary:
            source.write_weights(model, temporary, state, max_shard_size=max_shard_size)
            source.write_architecture(model, temporary, stamped(lowrank, model.framework))
            size = _weight_bytes(temporary)
            texts = extra_files(size) if callable(extra_files) else extra_files
            for name, text in (texts or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
            write_integrity(temporary, probe)
            open_to_others(temporary)
            flush(temporary)
            move_into_place(temporary, directory, overwrite=overwrite)
    return size


def _weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def stamped(lowrank: LowRankConfig, framework: str) -> dict[str, object]:
    """Return the block as JSON, with the versions of the packages that write it."""
    versions = dict(lowrank.versions)
    for package in dict.fromkeys(("compressor", "torch", framework)):
        with contextlib.suppress(PackageNotFoundError):
            versions.setdefault(package, version(package))
    return lowrank.model_copy(update={"versions": versions}).model_dump(mode="json")


def refuse_existing(directory: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is to be overwritten and may be.

    Args:
        directory: Where a run wants to write; checked before any work is done, and again on saving.
        overwrite: Whether a directory that compressor wrote may be replaced.

    Raises:
        OutputExistsError: If it may not be written.
    """
    if not directory.exists() and not directory.is_symlink():
        _refuse_unwritable(directory)
        return
    if not directory.is_dir() or directory.is_symlink():
        raise OutputExistsError(f"{directory} exists and is no directory. Choose another --out.")
    if _is_empty(directory):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{directory} exists. Pass --overwrite to replace it, or choose another --out."
        )
    if not _is_ours(directory):
        raise OutputExistsError(
            f"{directory} was not written by compressor, so --overwrite does not replace it. "
            "Choose another --out, or remove it yourself."
        )


def _is_empty(directory: Path) -> bool:
    """Return whether a directory holds nothing, or was removed meanwhile."""
    try:
        return not any(directory.iterdir())
    except FileNotFoundError:
        return True


def _refuse_unwritable(path: Path) -> None:
    """Refuse a path that cannot be made: one below a file, or in a directory that is read-only."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise OutputExistsError(f"{path} lies below {above}, a file. Choose another --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"Cannot write {path}: {above} is not writable. Check its permissions, or choose "
            "another --out."
        )


def refuse_existing_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file to be written that exists, unless it is to be overwritten.

    Args:
        path: The file that a run wants to write; checked before any work is done.
        overwrite: Whether a file may be replaced.

    Raises:
        OutputExistsError: If it may not be written.
        CheckpointError: If its directory is not writable.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a directory; expected a file to write. Change --out.")
    if path.is_symlink() and not path.exists():
        raise OutputExistsError(f"{path} {state(path)}. Remove it, or choose another --out.")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists. Pass --overwrite to replace it, or choose another --out."
        )
    _refuse_unwritable(path)


def refuse_existing_output(path: Path, *, directory: bool, overwrite: bool) -> None:
    """Refuse a file, or a directory of another framework, that exists or cannot be written.

    A directory is never replaced unless it is empty: it may hold a model that is not ours.

    Raises:
        OutputExistsError: If it may not be written.
        CheckpointError: If its directory is not writable.
    """
    if not directory:
        refuse_existing_file(path, overwrite=overwrite)
    elif path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputExistsError(
            f"{path} exists, and a directory is not replaced by an export. Choose another --out, "
            "or remove it yourself."
        )
    else:
        _refuse_unwritable(path)


def refuse_inputs(out: Path, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse an output that is an input of the same run, or lies around one: inputs never change.

    Args:
        out: What would be written or replaced.
        inputs: What the run reads; references that are no paths, and None, do not matter.

    Raises:
        OutputExistsError: If an input would be replaced.
    """
    target = os.path.realpath(out)
    for given in inputs:
        if given is None:
            continue
        path = str(given).rpartition(":")[0] if ".py:" in str(given) else given
        source = os.path.realpath(path)
        if os.path.exists(source) and (source == target or source.startswith(target + os.sep)):
            raise OutputExistsError(
                f"{out} is, or holds, {given}, which this run reads. Inputs are never changed: "
                "choose another --out."
            )


def _is_ours(directory: Path) -> bool:
    try:
        return find_lowrank(read_config(directory), where=str(directory)) is not None
    except CheckpointError:
        return False


def _refuse_full_disk(parent: Path, state: Mapping[str, Tensor], model: LoadedModel) -> None:
    tensors = {id(tensor): tensor for tensor in state.values()}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    needed += sum(path.stat().st_size for path in model.carried) + MARGIN
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CheckpointError(
            f"No space in {parent}: {needed:,} bytes are needed, {free:,} are free. Make room, or "
            "choose an --out elsewhere."
        )
