"""How fast and how large in memory a compressed model is beside the dense one: measured figures."""

from __future__ import annotations

import torch
from torch import nn

from compressor.evaluation.latency import compare_latency, one_forward
from compressor.evaluation.memory import peak_memory
from compressor.evaluation.speed_table import speed_table
from compressor.forward import first_tensor
from compressor.layers.lowrank import lowrank_layers
from compressor.methods.subject import Subject
from compressor.room import is_out_of_memory
from compressor.schema import LatencyFigures, LayerTime, SpeedFigures

BATCHES = (1, 32)

LONGEST = 5.0
"""Seconds that one forward may take for a batch size to be timed."""

CLEARLY_FASTER = 0.95
"""Below this share of the dense model's time there is nothing to explain."""


def speed_figures(
    subject: Subject, compressed: nn.Module, *, batches: tuple[int, ...] = BATCHES
) -> SpeedFigures:
    """Time both models in turn at each batch size, and count the memory of a forward.

    Where the compressed model is not clearly faster at the largest batch size, its layers are timed
    one by one, dense and factorized: that tells which of them hold it up.

    Args:
        subject: The dense model, and how to run it.
        compressed: The compressed model.
        batches: Batch sizes, ascending.
    """
    found, notes = [], []
    single = one_forward(subject.model, subject.inputs(1), forward=subject.forward)
    for batch in batches:
        if batch * single > LONGEST:
            notes.append(
                f"Batch {batch} was not timed: one sample takes {single:.2g} s, and a batch may "
                f"take {LONGEST:g} s."
            )
            continue
        try:
            found.append(_batch_figures(subject, compressed, batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            notes.append(f"Batch {batch} was not timed: memory ran out on it.")
    layers: tuple[LayerTime, ...] = ()
    if found and found[-1].compressed > CLEARLY_FASTER * found[-1].dense:
        layers = _layer_times(subject, compressed, found[-1].batch)
    size = first_tensor(subject.inputs(1)).shape[1:]
    return SpeedFigures(
        runtime=subject.runtime,
        threads=torch.get_num_threads(),
        input="×".join(str(side) for side in size),
        batches=tuple(found),
        layers=layers,
        notes=tuple(notes),
    )


def _batch_figures(subject: Subject, compressed: nn.Module, batch: int) -> LatencyFigures:
    """Return the time and the memory of both models at a batch size."""
    inputs = subject.inputs(batch)
    timed = compare_latency(
        subject.model,
        compressed,
        inputs,
        forward=subject.forward,
        runtime=subject.runtime,
        rounds=11,
        seconds=2.0,
    )
    return LatencyFigures(
        batch=batch,
        rounds=timed.rounds,
        dense=timed.dense,
        compressed=timed.compressed,
        dense_memory=peak_memory(subject.model, inputs, forward=subject.forward),
        compressed_memory=peak_memory(compressed, inputs, forward=subject.forward),
    )


def _layer_times(subject: Subject, compressed: nn.Module, batch: int) -> tuple[LayerTime, ...]:
    """Return the time of each factorized layer by itself, dense and at its rank."""
    ranks = {
        name: module.rank
        for name, module in lowrank_layers(compressed).items()
        if name in subject.candidates.layers
    }
    table = speed_table(
        subject.model,
        {name: subject.candidates.layers[name] for name in ranks},
        subject.inputs(batch),
        forward=subject.forward,
        ranks={name: (rank,) for name, rank in ranks.items()},
    )
    return tuple(
        LayerTime(name=name, rank=ranks[name], dense=speed.dense, compressed=speed.factors[0])
        for name, speed in table.items()
    )
