"""The plan: a rank for every layer, how to truncate to it, and why; plain data, editable JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from compressor.errors import CheckpointError, UsageError, did_you_mean
from compressor.jsonfile import read_object, validated
from compressor.layers.candidates import Candidate, Candidates, ConvForm
from compressor.layers.kinds import LAYER_KINDS, FoldingKind
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.paths import state
from compressor.schema import Choice, Pace, Trial

PLAN_VERSION: Final = 1


class PlannedLayer(BaseModel):
    """One layer's place in a plan.

    Args:
        kind: Registered layer kind: of convolutions ``conv2d`` in channel form, ``conv2d-spatial``
            in spatial form.
        shape: (m, n) of its matrix.
        rank: Rank to keep; edit this. Above ``break_even_rank`` the layer stays dense.
        break_even_rank: Largest rank at which two factors are smaller than the dense matrix.
        nc1_quotient: Collapse of the layer's input, for the reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    shape: tuple[int, int]
    rank: Annotated[int, Field(ge=1)]
    break_even_rank: int
    nc1_quotient: float | None = None


class Plan(BaseModel):
    """What `factorize` carries out.

    Args:
        version: Version of this schema.
        method: Name of the method that made it.
        budget: Budgets it was made for, as written.
        recipe: Metrics and corrections of the truncation.
        seed: Seed of the measurement.
        gradients: Whether the measurement took gradients.
        layers: Every candidate, by module name.
        selection: Candidates that were compared on held-out data.
        unmet: Budgets that could not be met, a sentence each; only with best effort.
        trials: The search that a ``drop=`` budget asked for.
        paces: The times that ``latency=`` budgets were judged by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = PLAN_VERSION
    method: str
    budget: tuple[str, ...] = ()
    recipe: Recipe
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    gradients: bool = True
    layers: dict[str, PlannedLayer]
    selection: tuple[Choice, ...] = ()
    unmet: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    paces: tuple[Pace, ...] = ()
    _measurement: Measurement | None = PrivateAttr(None)

    @property
    def measurement(self) -> Measurement | None:
        """The measurement that the plan was made from, unless it was read from a file."""
        return self._measurement

    @property
    def kinds(self) -> dict[str, str]:
        """Layer kind by layer name, which says what form a layer takes."""
        return {name: layer.kind for name, layer in self.layers.items()}

    @property
    def conv_form(self) -> ConvForm:
        """What convolutions have to be allowed for it: their other form too, if it names one."""
        named = (LAYER_KINDS.get(kind) for kind in set(self.kinds.values()))
        return "auto" if any(isinstance(kind, FoldingKind) for kind in named) else "channel"

    def bound_to(self, measurement: Measurement) -> Plan:
        """Return the plan with the measurement that carries it out."""
        bound = self.model_copy()
        bound._measurement = measurement
        return bound

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer name."""
        return {name: layer.rank for name, layer in self.layers.items()}

    def write(self, path: Path) -> None:
        """Write the plan as indented JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_plan(path: Path) -> Plan:
    """Read a plan.json.

    Raises:
        UsageError: If the file is missing, is no JSON, or does not follow the schema; the message
            names the key.
        CheckpointError: If this user may not read it.
    """
    missing = f"No such plan: {path} {state(path)}. `compressor plan` writes one."
    content = read_object(path, UsageError, missing=missing, unreadable=CheckpointError)
    return validated(Plan, content, str(path), UsageError)


def check_against(plan: Plan, candidates: Candidates) -> None:
    """Check that a plan fits a model.

    Raises:
        UsageError: If it names a layer that is no candidate of the model, or a kind, shape or
            rank does not fit.
    """
    for name, planned in plan.layers.items():
        layer = candidates.layers.get(name)
        if layer is None:
            reason = candidates.left_dense.get(name)
            because = f" It is left dense: {reason}." if reason else ""
            raise UsageError(
                f"The plan names layer {name!r}, which cannot be factorized in this model."
                f"{because}{did_you_mean(name, candidates.layers)}"
            )
        problem = _misfit(planned, layer)
        if problem is not None:
            raise UsageError(f"The plan does not fit layer {name!r}: {problem}.")


def _misfit(planned: PlannedLayer, layer: Candidate) -> str | None:
    kinds = [form.kind for form in (layer.form, *layer.others)]
    if planned.kind not in kinds:
        known = " or ".join(repr(kind) for kind in kinds)
        return f"its kind is {planned.kind!r} in the plan and {known} in the model"
    layer = layer.in_form(planned.kind)
    if planned.shape != layer.shape:
        return f"its shape is {planned.shape} in the plan and {layer.shape} in the model"
    if planned.rank > layer.full_rank:
        return f"rank {planned.rank} is above its full rank, {layer.full_rank}"
    return None


def planned_layers(
    layers: Mapping[str, Candidate],
    ranks: Mapping[str, int],
    collapse: Mapping[str, float | None],
) -> dict[str, PlannedLayer]:
    """Return the plan's layers from candidates, ranks and NC1 quotients by name."""
    return {
        name: PlannedLayer(
            kind=layer.kind,
            shape=layer.shape,
            rank=ranks[name],
            break_even_rank=layer.break_even_rank,
            nc1_quotient=collapse.get(name),
        )
        for name, layer in layers.items()
    }
