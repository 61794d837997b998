"""`compress --stream`: plan on shapes, then read, factorize and write one unit after the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.calibration import PROBE_SAMPLES, PROBE_TOKENS
from compressor.checkpoint.card import streamed_card
from compressor.checkpoint.format import LowRankConfig, LowRankLayer, find_lowrank, read_config
from compressor.checkpoint.integrity import write_integrity
from compressor.checkpoint.save import refuse_existing, stamped
from compressor.checkpoint.storage import cast_tensors
from compressor.errors import ModelError, UsageError
from compressor.figures import versions
from compressor.fingerprint import code_version
from compressor.forward import Forward
from compressor.gathering import candidates_of
from compressor.layers.unfusing import unfused
from compressor.methods.budget import parse_budget
from compressor.methods.factorize import factorized
from compressor.methods.method import METHODS
from compressor.methods.plan import Plan, check_against, read_plan
from compressor.methods.subject import Subject
from compressor.models import LoadedModel, load_model
from compressor.models.hub import snapshot
from compressor.models.source import MODEL_SOURCES
from compressor.models.transformers_lazy import LazyWeights, on_disk
from compressor.models.weights import find_weight_files, read_header, size_of
from compressor.progress import Progress
from compressor.schema import DenseLayer
from compressor.settings import StreamSettings
from compressor.stages import plan
from compressor.stopwatch import Stopwatch
from compressor.streaming.measurement import Passing, StreamedMeasurement
from compressor.streaming.memory import return_freed_memory
from compressor.streaming.output import growing, shard_name, write_index, write_shard
from compressor.streaming.schema import StreamedLayer, StreamReport
from compressor.streaming.units import Unit, Units

REPORT = "stream.json"
PLAN = "plan.json"


@dataclass(frozen=True)
class _Checkpoint:
    """A dense checkpoint of which nothing but shapes is in memory."""

    loaded: LoadedModel
    directory: Path
    weights: LazyWeights
    found: StreamedMeasurement

    @property
    def module(self) -> Any:
        """The dense model on the meta device."""
        return self.loaded.module

    @property
    def units(self) -> Units:
        """Its parts."""
        assert self.found.units is not None
        return self.found.units


def stream_model(settings: StreamSettings, *, progress: Progress) -> StreamReport:
    """Compress a transformers checkpoint with never more than one block of it in memory.

    Ranks follow from the weights alone. The model is never run, but for its shapes.

    Raises:
        OutputExistsError: If the output exists and may not be replaced.
        UsageError: If the method needs data, or a name, pattern, budget or plan is wrong.
        ModelError: If the checkpoint is no transformers directory of safetensors, is damaged, or
            does not run on shapes alone.
        LayerError: If a layer cannot be factorized.
        BudgetError: If a budget cannot be met.
        CheckpointError: If the result cannot be written.
    """
    refuse_existing(settings.out, overwrite=settings.overwrite)
    given = None if settings.plan is None else read_plan(settings.plan)
    _refuse_methods(settings, given)
    return_freed_memory()
    watch = Stopwatch()
    with watch.stage("load"):
        checkpoint = _open(settings)
    found, loaded = checkpoint.found, checkpoint.loaded
    made_of = _key(settings, checkpoint.directory)
    out, keep = settings.out.absolute(), settings.resume
    with growing(out, made_of, keep=keep, overwrite=settings.overwrite, progress=progress) as work:
        with watch.stage("plan"):
            made = _plan(settings, given, checkpoint, work, progress)
        with watch.stage("write"):
            keys, parameters = _write_units(checkpoint, made, work, progress)
        size = write_index(work, keys, parameters=parameters)
        source = MODEL_SOURCES.get(loaded.framework)
        source.write_architecture(loaded, work, stamped(_lowrank(found, made), loaded.framework))
        report = _report(settings, checkpoint, made, watch, parameters=parameters, size=size)
        (work / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = streamed_card(report, auto_class=type(loaded.module).__name__)
        (work / "README.md").write_text(card, encoding="utf-8")
        write_integrity(work, "the checkpoint was compressed in parts, and never run as a whole")
    return report


def _refuse_methods(settings: StreamSettings, given: Plan | None) -> None:
    for text in settings.method.budget:
        if parse_budget(text).kind == "drop":
            raise UsageError(f"--stream runs nothing, and only that would tell about {text}.")
    if settings.method.conv_form not in (None, "channel"):
        raise UsageError("--stream factorizes in channel form alone: leave out --conv-form.")
    needs = METHODS.get(settings.method.method).needs(gradients=False)
    if given is None and needs != "weights":
        raise UsageError(
            f"--stream looks at weights alone, and the method {settings.method.method!r} needs "
            "data. Take --method svd-energy, svd or evbmf; or leave out --stream, and let "
            "--blockwise save memory."
        )
    if given is not None and given.recipe.metric != "identity":
        raise UsageError(
            f"The plan truncates in the metric {given.recipe.metric!r}, which needs data. --stream "
            "replays plans of svd, svd-energy and evbmf."
        )


def _open(settings: StreamSettings) -> _Checkpoint:
    """Return the model on the meta device, and where its weights are."""
    loaded = load_model(settings.model, skeleton=True)
    reference = settings.model.model
    if loaded.framework != "transformers":
        raise UsageError(
            f"--stream reads transformers directories of safetensors, and {reference} belongs to "
            f"{loaded.framework}. Leave out --stream."
        )
    directory = Path(reference) if Path(reference).is_dir() else snapshot(reference, weights=True)
    if find_lowrank(read_config(directory), where=str(directory / "config.json")) is not None:
        raise UsageError(f"{reference} is compressed already. Name the dense checkpoint.")
    module: Any = loaded.module
    weights = LazyWeights(directory, module)
    return _Checkpoint(loaded, directory, weights, _measured(settings, loaded, weights))


def _measured(
    settings: StreamSettings, loaded: LoadedModel, weights: LazyWeights
) -> StreamedMeasurement:
    """Return the candidates, as two forwards of shapes alone tell them."""
    probe = loaded.example_inputs(PROBE_SAMPLES, length=PROBE_TOKENS)
    try:
        with _unpadded(loaded.module.config):
            apart = unfused(loaded.module.eval(), probe)
            candidates = candidates_of(
                apart,
                probe,
                heads=loaded.heads,
                include=settings.method.include,
                exclude=settings.method.exclude,
            )
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{loaded.reference} does not run on shapes alone ({error}), and streaming never holds "
            "its weights. Leave out --stream."
        ) from error
    return StreamedMeasurement(
        model=apart,
        candidates=candidates,
        statistics=None,
        calibration=(),
        selection=None,
        forward=Forward(),
        gradients=False,
        seed=settings.seed,
        units=Units(loaded.module, apart, candidates, weights),
    )


@contextlib.contextmanager
def _unpadded(config: Any) -> Iterator[None]:
    """Have transformers not look for padding among inputs that are shapes alone."""
    padding = config.pad_token_id
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = padding


def _plan(
    settings: StreamSettings,
    given: Plan | None,
    checkpoint: _Checkpoint,
    work: Path,
    progress: Progress,
) -> Plan:
    """Return the plan that was given, that an earlier run left, or a new one; and write it."""
    found = checkpoint.found
    path = work / PLAN
    if given is not None:
        made = given
    elif path.is_file():
        made = read_plan(path)
    else:
        progress.note("Reading the weights for a plan, one block at a time.")
        made = plan(
            found,
            settings.method.budget,
            method=settings.method.method,
            rank_multiple=settings.method.rank_multiple,
            best_effort=settings.method.best_effort,
            subject=Subject(
                model=found.model,
                candidates=found.candidates,
                inputs=checkpoint.loaded.example_inputs,
                storage_dtypes=checkpoint.weights.dtypes,
            ),
            progress=progress,
        )
    check_against(made, found.candidates)
    made.write(path)
    return made


def _write_units(
    checkpoint: _Checkpoint, made: Plan, work: Path, progress: Progress
) -> tuple[dict[str, list[str]], int]:
    """Write a shard for each unit; return the keys of each, and the parameters of all."""
    units, weights = checkpoint.units, checkpoint.weights
    keys: dict[str, list[str]] = {}
    parameters = 0
    for number, unit in enumerate(
        progress.track(units, description="stream", total=len(units)), start=1
    ):
        path = work / shard_name(number, len(units))
        if not path.is_file():
            tensors = cast_tensors(_compressed(units, unit, made), weights.dtypes)
            apart = bool(units.unfused)
            write_shard(on_disk(checkpoint.module, tensors, weights, unfused=apart), path)
        header = read_header([path])
        keys[path.name] = list(header)
        parameters += sum(math.prod(entry.shape) for entry in header.values())
    return keys, parameters


def _compressed(units: Units, unit: Unit, made: Plan) -> dict[str, Tensor]:
    """Return one unit's tensors after truncation, by their names in memory."""
    model = units.filled(unit)
    layers = unit.layers
    ranks = {name: rank for name, rank in made.ranks.items() if name in layers}
    small = factorized(model, layers, ranks, made.recipe, Passing(model, layers, {}))
    return {name: t.detach() for name, t in small.state_dict().items() if not t.is_meta}


def _lowrank(found: StreamedMeasurement, made: Plan) -> LowRankConfig:
    assert found.units is not None
    layers = found.candidates.layers
    return LowRankConfig(
        layers={
            name: LowRankLayer(kind=layers[name].kind, rank=rank, bias=layers[name].has_bias)
            for name, rank in made.ranks.items()
            if rank <= layers[name].break_even_rank
        },
        unfused=found.units.unfused,
    )


def _report(
    settings: StreamSettings,
    checkpoint: _Checkpoint,
    made: Plan,
    watch: Stopwatch,
    *,
    parameters: int,
    size: int,
) -> StreamReport:
    units, candidates = checkpoint.units, checkpoint.found.candidates
    layers = []
    for name, layer in candidates.layers.items():
        rank = layer.kept(made.ranks.get(name, layer.full_rank))
        layers.append(
            StreamedLayer(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                rank=rank,
                full_rank=layer.full_rank,
                parameters=layer.cost(rank),
            )
        )
    return StreamReport(
        model=settings.model.model,
        method=made.method,
        budget=made.budget,
        command=settings.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        parameters=candidates.parameters,
        compressed_parameters=parameters,
        layer_share=sum(layer.parameters for layer in layers) / candidates.layer_parameters,
        bytes=size_of(find_weight_files(checkpoint.directory)),
        compressed_bytes=size,
        units=len(units),
        largest_unit=max(sum(units.sizes[name] for name in unit.tensors) for unit in units),
        layers=tuple(layers),
        left_dense=tuple(
            DenseLayer(name=name, reason=reason) for name, reason in candidates.left_dense.items()
        ),
        unmet=made.unmet,
        seconds=watch.seconds,
        out=str(settings.out),
    )


def _key(settings: StreamSettings, directory: Path) -> dict[str, object]:
    """Return what every shard depends on: files by size and time, since hashing them reads all."""
    files = [*find_weight_files(directory), directory / "config.json"]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {
        "files": [list(stat) for stat in stats],
        "method": settings.method.model_dump(mode="json"),
        "plan": None if settings.plan is None else settings.plan.read_text(encoding="utf-8"),
        "versions": versions(),
        "code": code_version(),
    }
