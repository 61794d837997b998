"""How the dense checkpoint and the one that was written fare on test data, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.evaluation.loop import Evaluation
from compressor.forward import Batches
from compressor.layers.candidates import Candidates
from compressor.methods.plan import Plan
from compressor.models.transformers_lazy import LazyWeights
from compressor.progress import Progress
from compressor.streaming.checkpoint import Checkpoint
from compressor.streaming.compressed import compressed_shapes
from compressor.streaming.judging import keeps_head
from compressor.streaming.runnable import Runnable, runnable
from compressor.streaming.scores import scored
from compressor.streaming.units import unit_of


def evaluated(
    checkpoint: Checkpoint,
    candidates: Candidates,
    made: Plan,
    work: Path,
    batches: Batches,
    *,
    dense: Runnable,
    scratch: Path,
    progress: Progress,
) -> tuple[Evaluation, Evaluation]:
    """Return how the dense model and the one in a directory fare on the same batches.

    Args:
        checkpoint: The dense model.
        candidates: Its layers.
        made: Ranks of the other one.
        work: Where its shards lie, with their index.
        batches: Test batches of (inputs, labels [B, T]).
        dense: The dense model, ready to be run.
        scratch: Where hidden states go.
        progress: Told of each part.
    """
    shapes: Any = compressed_shapes(checkpoint.units.shapes, candidates, made.ranks)
    weights = LazyWeights(work, shapes, unfused=bool(checkpoint.units.unfused))
    inside: dict[str, list[str]] = {}
    for name in weights.names:
        inside.setdefault(unit_of(shapes, name), []).append(name)

    def read(unit: str) -> dict[str, Tensor]:
        found = weights.read(inside[unit])
        return {n: t.float() if t.is_floating_point() else t for n, t in found.items()}

    small = runnable(checkpoint.loaded, shapes, units=inside, read=read, buffers=weights.names)
    states = dense.last_states(batches, scratch, progress=progress, description="evaluate dense")
    before = scored(dense, states, batches)
    checkpoint.units.release()
    other = small.last_states(
        batches, scratch, progress=progress, description="evaluate compressed"
    )
    # A head that is the same need not be in memory twice.
    head = small if keeps_head(checkpoint.units, candidates, made.ranks) else dense
    after = scored(small, other, batches, dense=(head, states))
    states.drop()
    other.drop()
    return before, after
