"""The directory that a streamed checkpoint grows in, shard by shard, and where it ends up."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

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
from compressor.errors import CheckpointError
from compressor.paths import refusal, worded
from compressor.pipeline.resume import alone, resume_directory
from compressor.progress import Progress

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Workshop:
    """Where a streamed checkpoint is made.

    Args:
        checkpoint: The directory that ends up at the output.
        scratch: One for what is measured on the way; it is gone at the end.
    """

    checkpoint: Path
    scratch: Path


@contextlib.contextmanager
def growing(
    out: Path, made_of: Mapping[str, object], *, keep: bool, overwrite: bool, progress: Progress
) -> Iterator[Workshop]:
    """Yield where to write a directory, which moves to ``out`` when all went well.

    What is measured on the way lies beside ``out`` where it is kept, else in ``TMPDIR``.

    Args:
        out: Where it ends up.
        made_of: What its contents depend on, as plain data.
        keep: Leave it beside ``out`` if the block is not left well, and begin with what an
            earlier run of the same key left there.
        overwrite: Replace a directory that lies at ``out``.
        progress: Told what is found and kept.

    Raises:
        UsageError: If another process is at work on the same output.
        CheckpointError: If the disk is full or fails.
    """
    if not keep:
        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with sibling(out) as work, tempfile.TemporaryDirectory(prefix="compressor-") as room:
                yield Workshop(work, Path(room))
                _settle(work, out, overwrite=overwrite)
        return
    directory = resume_directory(out)
    with alone(directory, out):
        remove_leftovers(out)
        work, key = directory / "checkpoint", directory / "made_of.json"
        scratch = directory / "scratch"
        text = json.dumps(made_of, sort_keys=True)
        if not key.is_file() or key.read_text(encoding="utf-8") != text:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
            write_file(key, text)
        elif work.is_dir():
            progress.note(f"Going on from what is in {directory}.")
        work.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        with _kept(directory):
            yield Workshop(work, scratch)
        with explained(out):
            _settle(work, out, overwrite=overwrite)
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _kept(directory: Path) -> Iterator[None]:
    """Tell of a disk that fails, and that what is finished is there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot write in {directory}: {worded(error)}. What is finished is kept there: make "
            "space, and the same command goes on."
        ) from error


def write_shard(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one shard, whole or not at all.

    Raises:
        CheckpointError: If the disk is full or fails.
    """
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})


def shard_name(number: int, total: int) -> str:
    """Return the name that transformers gives shard ``number`` of ``total``, from 1 on."""
    return f"model-{number:05}-of-{total:05}.safetensors"


def write_index(directory: Path, keys: Mapping[str, list[str]], *, parameters: int) -> int:
    """Write the index of all shards; return the size of the weight files in bytes.

    Args:
        directory: Where the shards lie.
        keys: Names of the tensors in each shard, by its file name.
        parameters: Of the whole model.
    """
    size = sum((directory / shard).stat().st_size for shard in keys)
    index = {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": {key: shard for shard, names in keys.items() for key in names},
    }
    try:
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"Cannot write {directory / INDEX}: {refusal(error)}") from error
    return size


def _settle(work: Path, out: Path, *, overwrite: bool) -> None:
    open_to_others(work)
    flush(work)
    move_into_place(work, out, overwrite=overwrite)
