"""Where a run keeps what it has computed, so that a killed one is taken up where it was."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from compressor.cache import Cache
from compressor.checkpoint.save import remove_leftovers
from compressor.errors import CheckpointError, UsageError
from compressor.figures import Loaded, versions
from compressor.fingerprint import code_version, hash_of_weights
from compressor.paths import worded
from compressor.progress import Progress
from compressor.schema import Report
from compressor.settings import (
    CompressSettings,
    DataSettings,
    ModelSettings,
    StreamSettings,
    SweepSettings,
)
from compressor.streaming.schema import StreamReport

_LOCK = ".run.lock"


Told = TypeVar("Told", Report, StreamReport)


def run_key(loaded: Loaded, model: ModelSettings, data: DataSettings) -> dict[str, object]:
    """Return what everything that is computed of a model and its data depends on, as plain data.

    Not in it is what belongs to one result alone: seeds, the sort of pass, ranks, the test data.

    Args:
        loaded: The model and its data.
        model: How the model was read.
        data: How the data was read; where it lies does not matter, only what it holds.
    """
    found = loaded.model
    return {
        "model": found.sha256 or hash_of_weights(found.module),
        "architecture": _hash([str(found.module), *_contents(model, found.carried)]),
        "read": model.model_dump(mode="json", exclude={"model", "checkpoint", "factory", "device"}),
        "data": [loaded.data.calibration.sha256, loaded.data.selection.sha256],
        "classes": None if loaded.data.classes is None else loaded.data.classes.tolist(),
        "batches": data.model_dump(
            mode="json", exclude={"data", "test_data", "calibration", "limit", "strict"}
        ),
        "device": loaded.forward.device.type,
        "versions": versions(),
        "code": code_version(),
    }


@contextlib.contextmanager
def kept_results(
    settings: CompressSettings | SweepSettings, loaded: Loaded, progress: Progress, *, resume: bool
) -> Iterator[Cache | None]:
    """Yield the cache that settings ask for; None if they ask for none.

    Results lie in ``settings.cache``, for all runs and for good; else, to ``resume``, beside the
    output, where they are removed as soon as the block is left without an error.

    Raises:
        UsageError: If another process is at work on the same output.
    """
    group = loaded.forward.group
    if settings.cache is None and not resume:
        yield None
        return
    made_of = run_key(loaded, settings.model, settings.data)
    if settings.cache is not None or not group.leads:
        directory = settings.cache or resume_directory(settings.out)
        yield Cache(directory, made_of, note=progress.note, group=group)
        return
    directory = resume_directory(settings.out)
    with alone(directory, settings.out):
        remove_leftovers(settings.out)
        if _results(directory):
            progress.note(f"Going on from the results in {directory}.")
        try:
            yield Cache(directory, made_of, note=progress.note, own=True, group=group)
        except BaseException:
            if _results(directory):
                progress.note(
                    f"Results are kept in {directory}: the same command goes on from there."
                )
            else:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)


def resume_directory(out: Path) -> Path:
    """Return where results of an unfinished run lie: a hidden directory beside its output."""
    out = out.absolute()
    return out.parent / f".{out.name}.resume"


def _results(directory: Path) -> bool:
    """Return whether a directory holds any entry of a cache, besides locks."""
    return any(not path.name.startswith(".") for path in directory.iterdir())


def finished_before(
    settings: CompressSettings | StreamSettings, kind: type[Told], file: str
) -> Told | None:
    """Return the report of an output that this very command has finished, else None.

    A run that is killed after it wrote its output, and a scheduler that repeats a command, are
    given what is there.

    Args:
        settings: What is asked for.
        kind: What the report is.
        file: Its name in the output.
    """
    if not settings.resume or settings.overwrite or settings.command is None:
        return None
    try:
        report = kind.model_validate_json((settings.out / file).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return report if report.command == settings.command else None


@contextlib.contextmanager
def alone(directory: Path, out: Path) -> Iterator[None]:
    """Hold the directory for this process; the lock of a killed one is free."""
    lock = FileLock(directory / _LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"Another process is at work on {out}. Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"Cannot keep results in {directory}: {worded(error)}. Leave out --resume, or choose "
            "another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _contents(model: ModelSettings, carried: tuple[Path, ...]) -> Iterator[str]:
    """Yield a hash of each file besides the weights that tells how the model works."""
    source = Path((model.factory or model.model).partition(":")[0])
    files = [*carried, *([source] if source.suffix == ".py" else [])]
    for file in sorted(files):
        if file.is_file():
            yield hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
