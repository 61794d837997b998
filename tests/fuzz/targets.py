"""What is fuzzed: a target reads bytes as one kind of file; only CompressorError may come out."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from compressor.errors import CompressorError

Target = Callable[[bytes], None]

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY))
"""Where inputs are written; one process, one folder."""


def config(data: bytes) -> None:
    """Read config.json of a model directory, whose weights are a small file."""
    from compressor.checkpoint.format import find_lowrank, read_config
    from compressor.models.bounded import refuse_absurd

    (FOLDER / "config.json").write_bytes(data)
    found = read_config(FOLDER)
    refuse_absurd(found, "config.json")
    find_lowrank(found, where="config.json")


def plan(data: bytes) -> None:
    """Read plan.json."""
    from compressor.methods.budget import parse_budget
    from compressor.methods.plan import read_plan

    for budget in read_plan(written("plan.json", data)).budget:
        parse_budget(budget)


def integrity(data: bytes) -> None:
    """Read integrity.json, and make the probe's inputs."""
    from compressor.checkpoint.integrity import read_integrity

    written("integrity.json", data)
    record = read_integrity(FOLDER)
    if record is not None and record.probe is not None:
        record.probe.batch()


def shard_index(data: bytes) -> None:
    """Read the index of weight shards."""
    from compressor.models.weights import find_weight_files

    folder = FOLDER / "shards"
    folder.mkdir(exist_ok=True)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (folder / name).touch()
    (folder / "model.safetensors.index.json").write_bytes(data)
    for file in find_weight_files(folder):
        assert file.parent == folder, file


def report(data: bytes) -> None:
    """Read report.json and write its page and its card."""
    from compressor.report.runs import read_report

    read_report(written("report.json", data))


def safetensors(data: bytes) -> None:
    """Read header and tensors of a safetensors file."""
    from compressor.models.weights import read_header, read_state_dict

    path = written("model.safetensors", data)
    header = read_header([path])
    state = read_state_dict(path)
    assert sum(tensor.nbytes for tensor in state.values()) <= len(data)
    assert len(state) == len(header)


def state_dict(data: bytes) -> None:
    """Read a .pt file."""
    from compressor.models.weights import read_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_state_dict(written("weights.pt", data))


def image(data: bytes) -> None:
    """Decode an image file."""
    from compressor.data.preprocessing import decode
    from compressor.models.source import ImageTransform

    transform = ImageTransform((3, 8, 8), (0.5,), (0.5,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, _ = decode(data, transform)
    assert pixels.shape == (3, 8, 8)


def csv(data: bytes) -> None:
    """Read a CSV file."""
    _table("data.csv", data)


def jsonl(data: bytes) -> None:
    """Read a file of JSON lines."""
    _table("data.jsonl", data)


def parquet(data: bytes) -> None:
    """Read a Parquet file."""
    _table("data.parquet", data)


def manifest(data: bytes) -> None:
    """Read the manifest of a batch."""
    from compressor.batch.manifest import read_manifest  # type: ignore[import-not-found]

    for name in ("models/bert", "data"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        (FOLDER / name / "file").touch()
    for name in ("net.py", "w.pt"):
        (FOLDER / name).touch()
    read_manifest(written("jobs.yaml", data))


CHEAP: dict[str, Target] = {
    target.__name__: target
    for target in (config, plan, integrity, shard_index, report, safetensors, state_dict, image)
}
"""Targets of some hundred microseconds an input."""

TABLES: dict[str, Target] = {target.__name__: target for target in (csv, jsonl, parquet)}
"""Targets that go through a library's cache on disk: some hundred milliseconds an input."""

try:
    import compressor.batch.manifest  # noqa: F401
except ImportError:
    pass
else:
    CHEAP["manifest"] = manifest

TARGETS = CHEAP | TABLES


def attempt(target: Target, data: bytes) -> str | None:
    """Give a target one input; return the kind of refusal, or None where it was read.

    Raises:
        BaseException: Whatever else the target raises: that is what is looked for.
    """
    try:
        target(data)
    except CompressorError as error:
        message = str(error)
        assert message.strip(), "an error without words"
        json.dumps(message).encode()
        return type(error).__name__
    return None


def written(name: str, data: bytes) -> Path:
    """Write an input as a file of the given name."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _table(name: str, data: bytes) -> None:
    import datasets

    from compressor.data.tables import TableSource
    from compressor.settings import DataSettings

    cache = FOLDER / "cache"
    datasets.config.HF_DATASETS_CACHE = cache
    path = written(name, data)
    try:
        for split in TableSource().read(str(path), DataSettings(data=str(path))).values():
            for index in range(min(len(split.samples), 3)):
                split.samples[index]
    finally:
        shutil.rmtree(cache, ignore_errors=True)
