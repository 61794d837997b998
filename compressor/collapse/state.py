"""Statistics as named tensors and back, for a cache or for another process (pure)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.collapse.capture import Statistics
from compressor.collapse.fisher import KroneckerFisher, RowFactors
from compressor.collapse.loss import LossGradient
from compressor.collapse.moments import ClassMoments
from compressor.collapse.row_energy import RowEnergies, from_named, named
from compressor.collapse.watch import LayerStatistics, with_heads
from compressor.layers.candidates import Candidate, Candidates

_MOMENTS = ("counts", "means", "traces", "within")


def state_of(statistics: Statistics) -> dict[str, Tensor]:
    """Return everything that was gathered as tensors by name; what layers share, once."""
    state = {
        "logits": statistics.logits,
        "labels": statistics.labels,
        "clustered": torch.tensor(statistics.clustered),
    }
    for group, rows in statistics.pooled.items():
        state[f"pooled/{group}"] = rows
    for index, energies in enumerate(statistics.energies):
        state |= _named(f"energies/{index}", named(energies))
    heads = {f.head.layer.name: f.head for f in statistics.layers.values() if f.head is not None}
    for name, found in {**statistics.layers, **heads}.items():
        group = name if found.counts is not None else found.layer.group
        if name == group:
            state |= _named(f"inputs/{group}", found.inputs.state())
            if found.magnitude is not None:
                state[f"magnitude/{group}"] = found.magnitude
        state |= _named(f"outputs/{name}", found.outputs.state())
        state[f"rest/{name}"] = torch.tensor(found.rest)
        if found.counts is not None:
            state[f"counts/{name}"] = found.counts
        if found.fisher is not None:
            state |= _named(
                f"fisher/{name}",
                {
                    "near": found.fisher.near,
                    "pulled": found.fisher.pulled,
                    "rows": found.fisher.rows,
                    "centre": found.fisher.centre,
                    "energy": torch.tensor(found.fisher.energy, dtype=torch.float64),
                    **_whole(found.fisher),
                },
            )
        if found.fisher is not None and found.fisher.by_row is not None:
            by_row = found.fisher.by_row
            state |= _named(
                f"fisher/{name}/by_row",
                {
                    "near": by_row.near,
                    "pulled": by_row.pulled,
                    "energy": torch.tensor(by_row.energy, dtype=torch.float64),
                    **_whole(by_row),
                },
            )
        if found.loss is not None:
            state |= _named(f"loss/{name}", {"mean": found.loss.mean, "rows": found.loss.rows})
    return state


def statistics_of(
    state: Mapping[str, Tensor], candidates: Candidates, device: torch.device
) -> Statistics:
    """Return the statistics that `state_of` was called on.

    Args:
        state: Its result.
        candidates: The layers that were watched.
        device: Where they go.

    Raises:
        KeyError: If the state is of other candidates.
    """
    watched = dict(candidates.layers)
    for layer in candidates.layers.values():
        heads = {name: layer.head(name) for name in layer.tied if f"rest/{name}" in state}
        watched |= heads
    inputs = {
        group: _moments(state, f"inputs/{group}", device)
        for name, layer in watched.items()
        if (group := _group(state, name, layer)) == name
    }
    layers = {}
    for name, layer in watched.items():
        group, counts = _group(state, name, layer), state.get(f"counts/{name}")
        magnitude = state.get(f"magnitude/{group}")
        layers[name] = LayerStatistics(
            layer=layer,
            inputs=inputs[group],
            outputs=_moments(state, f"outputs/{name}", device),
            fisher=_fisher(state, name, device),
            magnitude=None if magnitude is None else magnitude.to(device),
            loss=_loss(state, name, device),
            rest=bool(state[f"rest/{name}"]),
            counts=None if counts is None else counts.to(device),
        )
    return Statistics(
        layers=with_heads(candidates, layers),
        logits=state["logits"],
        labels=state["labels"],
        pooled={
            name.removeprefix("pooled/"): rows
            for name, rows in state.items()
            if name.startswith("pooled/")
        },
        clustered=bool(state["clustered"]),
        energies=_energies(state),
    )


def _group(state: Mapping[str, Tensor], name: str, layer: Candidate) -> str:
    """Return the layer whose input moments a layer shares: its own, if it looks up rows."""
    return name if f"counts/{name}" in state else layer.group


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _whole(factors: KroneckerFisher | RowFactors) -> dict[str, Tensor]:
    return {} if factors.far is None else {"far": factors.far}


def _energies(state: Mapping[str, Tensor]) -> tuple[RowEnergies, ...]:
    batches: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith("energies/"):
            _, index, name = key.split("/", 2)
            batches.setdefault(int(index), {})[name] = tensor
    return tuple(from_named(batches[index]) for index in sorted(batches))


def _moments(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> ClassMoments:
    found = {
        name: state[f"{prefix}/{name}"].to(device)
        for name in _MOMENTS
        if f"{prefix}/{name}" in state
    }
    return ClassMoments.from_state(found)


def _fisher(state: Mapping[str, Tensor], name: str, device: torch.device) -> KroneckerFisher | None:
    if f"fisher/{name}/near" not in state:
        return None
    near, pulled, rows, centre = (
        state[f"fisher/{name}/{part}"].to(device) for part in ("near", "pulled", "rows", "centre")
    )
    energy = float(state[f"fisher/{name}/energy"])
    by_row = None
    if f"fisher/{name}/by_row/near" in state:
        by_row = RowFactors(
            near=state[f"fisher/{name}/by_row/near"].to(device),
            pulled=state[f"fisher/{name}/by_row/pulled"].to(device),
            energy=float(state[f"fisher/{name}/by_row/energy"]),
            far=_far(state, f"fisher/{name}/by_row", device),
        )
    return KroneckerFisher(
        near=near,
        pulled=pulled,
        energy=energy,
        rows=rows,
        centre=centre,
        by_row=by_row,
        far=_far(state, f"fisher/{name}", device),
    )


def _far(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> Tensor | None:
    found = state.get(f"{prefix}/far")
    return None if found is None else found.to(device)


def _loss(state: Mapping[str, Tensor], name: str, device: torch.device) -> LossGradient | None:
    if f"loss/{name}/mean" not in state:
        return None
    return LossGradient(
        mean=state[f"loss/{name}/mean"].to(device), rows=state[f"loss/{name}/rows"].to(device)
    )
