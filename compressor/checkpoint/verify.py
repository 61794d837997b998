"""Does a saved directory still hold, and still compute, what was saved?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from compressor.checkpoint.format import FORMAT_VERSION, SavedBlock, find_lowrank, read_saved_config
from compressor.checkpoint.integrity import DOCUMENTS, NAME, Integrity, read_integrity, record_of
from compressor.checkpoint.probe import replay
from compressor.errors import CheckpointError, CompressorError
from compressor.layers.lowrank import lowrank_layers
from compressor.methods.plan import read_plan
from compressor.models import load_model
from compressor.models.weights import find_weight_files, hash_files, read_header
from compressor.progress import SILENT, Progress
from compressor.schema import Check, VerificationReport
from compressor.settings import ModelSettings

UNRECORDED = "it was saved without integrity.json, by an older version or by save_pretrained"
SHOWN = 5

THIN = {"down": (0, 1), "up": (1, 0)}
"""The factor beside ``weight`` of a factorized layer, with the dimension of its shape that is the
rank and the one that is the layer's own width: embeddings are widened, other layers narrowed."""


def verify_directory(
    settings: ModelSettings,
    *,
    sha256: str | None = None,
    tolerance: float | None = None,
    progress: Progress = SILENT,
) -> VerificationReport:
    """Check hashes, versions, ranks, shapes and outputs of a directory that this package saved.

    Nothing is written. No code from the directory is run; a plain torch module is built only
    where a factory is given.

    Args:
        settings: The directory, with the factory of a plain torch module.
        sha256: What the hash of integrity.json should be, from a source that can be trusted.
        tolerance: Largest difference of a logit, as a share of the largest; None takes the
            stored one.
        progress: Told of each check.

    Returns:
        Every check with its outcome.

    Raises:
        CheckpointError: If the directory was not saved by this package, or by a newer version.
    """
    started = perf_counter()
    directory = Path(settings.model)
    saved = find_lowrank(read_saved_config(directory), where=str(directory / "config.json"))
    if saved is None:
        raise CheckpointError(
            f"{directory} was not saved by compressor: its config.json has no low-rank block, so "
            "there is nothing to verify. Compress a model first."
        )
    record: Integrity | None = None
    with contextlib.suppress(CheckpointError):  # its check says what is wrong with it
        record = read_integrity(directory)
    stages: dict[str, Callable[[], Check]] = {
        "integrity": lambda: _integrity(directory, sha256),
        "files": lambda: _files(directory, record),
        "versions": lambda: _versions(saved),
        "ranks": lambda: _ranks(directory, saved),
        "plan": lambda: _plan(directory, saved),
        "outputs": lambda: _outputs(settings, saved, record, tolerance),
    }
    checks = []
    for name, check in progress.track(stages.items(), description="verify", total=len(stages)):
        try:
            checks.append(check())
        except CompressorError as error:
            checks.append(Check(name=name, outcome="failed", detail=str(error)))
    return VerificationReport(
        directory=str(directory),
        framework=saved.framework,
        layers=len(saved.lowrank.layers),
        integrity_sha256=_own_hash(directory),
        ok=all(check.outcome != "failed" for check in checks),
        checks=tuple(checks),
        seconds=perf_counter() - started,
    )


def _integrity(directory: Path, sha256: str | None) -> Check:
    """Check the record itself, against the hash that a person has of it."""
    found = read_integrity(directory) and _own_hash(directory)
    if sha256 is not None and sha256.lower() != found:
        return Check(
            name="integrity",
            outcome="failed",
            detail=f"the SHA-256 of {NAME} is {found or 'that of no file'}, expected {sha256}",
        )
    if found is None:
        return Check(name="integrity", outcome="skipped", detail=UNRECORDED)
    told = "as expected" if sha256 is not None else "compare it with one that you trust"
    return Check(name="integrity", outcome="passed", detail=f"SHA-256 {found}, {told}")


def _files(directory: Path, record: Integrity | None) -> Check:
    """Check size and hash of every file, and that none was added that a loader might read."""
    if record is None:
        return Check(name="files", outcome="skipped", detail=UNRECORDED)
    present = {path.name for path in directory.iterdir()} - {NAME}
    missing = sorted(record.files.keys() - present)
    added = sorted(present - record.files.keys() - set(DOCUMENTS))
    changed = [
        name
        for name in sorted(record.files.keys() & present)
        if not (directory / name).is_file() or record_of(directory / name) != record.files[name]
    ]
    edited = [name for name in changed if name in DOCUMENTS]
    problems = [
        f"{what}: {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"
        for what, names in (
            ("missing", missing),
            ("changed", [name for name in changed if name not in DOCUMENTS]),
            ("added since", added),
        )
        if names
    ]
    if problems:
        return Check(name="files", outcome="failed", detail="; ".join(problems))
    told = f"; edited since: {', '.join(edited)}" if edited else ""
    return Check(
        name="files",
        outcome="passed",
        detail=f"{len(record.files)} files are what was saved{told}",
    )


def _versions(saved: SavedBlock) -> Check:
    """Compare the packages that wrote the directory with those that are installed."""
    others = []
    for package, then in saved.lowrank.versions.items():
        with contextlib.suppress(PackageNotFoundError, ValueError):
            if version(package) != then:
                others.append(f"{package} {then} → {version(package)}")
    told = f"; now other than when saved: {', '.join(others)}" if others else ""
    return Check(
        name="versions",
        outcome="passed",
        detail=f"format {saved.lowrank.format_version}, this version reads up to "
        f"{FORMAT_VERSION}{told}",
    )


def _ranks(directory: Path, saved: SavedBlock) -> Check:
    """Compare the ranks that config.json names with the shapes of the stored factors.

    transformers may give a layer another name on disk; such layers are compared without their
    names, and loading the model does the rest.
    """
    shapes = {key: entry.shape for key, entry in read_header(find_weight_files(directory)).items()}
    ranks = {name: layer.rank for name, layer in saved.lowrank.layers.items()}
    stored = {name: found for name in ranks if (found := _stored(shapes, name)) is not None}
    ends = tuple(f".{thin}.weight" for thin in THIN)
    others = {key.removesuffix(end) for key in shapes for end in ends if key.endswith(end)}
    nameless = [
        found.rank
        for name in sorted(others - ranks.keys())
        if f"{name}.weight" in shapes and (found := _stored(shapes, name)) is not None
    ]
    wrong = [
        f"{name} has factors {found.shown} at rank {ranks[name]}"
        for name, found in stored.items()
        if not found.fits or found.rank != ranks[name]
    ]
    for name in ranks.keys() - stored.keys():
        if ranks[name] not in nameless:
            wrong.append(f"{name} has no factors of rank {ranks[name]} in the file")
    if nameless and stored.keys() == ranks.keys():
        wrong.append(f"{len(nameless)} layers have factors that config.json does not name")
    if wrong:
        more = f" … ({len(wrong)} layers)" if len(wrong) > SHOWN else ""
        return Check(name="ranks", outcome="failed", detail="; ".join(wrong[:SHOWN]) + more)
    return Check(
        name="ranks",
        outcome="passed",
        detail=f"the factors of {len(ranks)} layers have the ranks of config.json",
    )


class Stored(NamedTuple):
    """What a file holds of one factorized layer.

    Args:
        rank: Width between its factors.
        fits: Whether the factors fit together, and the rank lies within their shapes.
        shown: Their shapes, for messages.
    """

    rank: int
    fits: bool
    shown: str


def _stored(shapes: Mapping[str, tuple[int, ...]], name: str) -> Stored | None:
    """Return the factors of a layer on disk, or None where there are none of that name.

    Of a table that an output layer shares with an embedding the file holds one.
    """
    for thin, (inner, outer) in THIN.items():
        small, large = shapes.get(f"{name}.{thin}.weight"), shapes.get(f"{name}.weight")
        if small is None or len(small) < 2:
            continue
        rank = small[inner]
        widths = [small[0] if outer == 0 else math.prod(small[1:])]
        if large is not None:
            widths.append(large[0] * math.prod(large[2:]))
        fits = 1 <= rank <= min(widths) and (large is None or large[1:2] == (rank,))
        return Stored(rank, fits, " and ".join(str(list(s)) for s in (large, small) if s))
    return None


def _plan(directory: Path, saved: SavedBlock) -> Check:
    """Compare the ranks of plan.json with those of config.json."""
    path = directory / "plan.json"
    if not path.exists():
        return Check(name="plan", outcome="skipped", detail="there is no plan.json")
    layers = read_plan(path).layers
    planned = {n: layer.rank for n, layer in layers.items() if layer.rank <= layer.break_even_rank}
    carried_out = {name: layer.rank for name, layer in saved.lowrank.layers.items()}
    # An output layer that is tied to an embedding shares its table, and stands in no plan.
    tables = {rank for name, rank in planned.items() if layers[name].kind == "embedding"}
    shared = {n for n, rank in carried_out.items() if n not in layers and rank in tables}
    off = [
        f"{name}: {planned.get(name, 'dense')} in plan.json, {carried_out.get(name, 'dense')} in "
        "config.json"
        for name in sorted((planned.keys() | carried_out.keys()) - shared)
        if planned.get(name) != carried_out.get(name)
    ]
    if off:
        return Check(name="plan", outcome="failed", detail="; ".join(off[:SHOWN]))
    return Check(name="plan", outcome="passed", detail="plan.json and config.json agree")


def _outputs(
    settings: ModelSettings, saved: SavedBlock, record: Integrity | None, tolerance: float | None
) -> Check:
    """Load the model, whose weights must fit and be finite, and replay the probe."""
    if saved.framework == "torch" and settings.factory is None:
        return Check(
            name="outputs",
            outcome="skipped",
            detail="a plain torch module: say what builds it with --factory FILE.py:FUNCTION",
        )
    module = load_model(settings).module
    absent = sorted(saved.lowrank.layers.keys() - lowrank_layers(module).keys())
    if absent:
        return Check(
            name="outputs",
            outcome="failed",
            detail=f"loaded without factors: {', '.join(absent[:SHOWN])}",
        )
    if record is None or record.probe is None:
        why = UNRECORDED if record is None else f"no probe was stored: {record.unprobed}"
        return Check(name="outputs", outcome="skipped", detail=f"the weights load; {why}")
    found = replay(module, record.probe, tolerance=tolerance)
    told = (
        f"the logits differ by {found.difference:.2g} from those when it was saved "
        f"(allowed: {found.allowed:.2g})"
    )
    return Check(
        name="outputs",
        outcome="passed" if found.difference <= found.allowed else "failed",
        detail=told,
    )


def _own_hash(directory: Path) -> str | None:
    path = directory / NAME
    return hash_files([path]) if path.is_file() else None
