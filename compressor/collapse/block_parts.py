"""Which candidates lie before a model's blocks, in each of them, and after them."""

from __future__ import annotations

from collections.abc import Iterable

from compressor.collapse.chain import Chain
from compressor.errors import ModelError
from compressor.layers.candidates import Candidates


def parts_of(
    candidates: Candidates, chain: Chain
) -> tuple[Candidates, list[Candidates], Candidates]:
    """Return the candidates before the blocks, in each of them, and after them.

    Raises:
        ModelError: If layers of several parts share their input rows.
    """
    order = list(candidates.layers)
    within = {name: chain.position(name) for name in order}
    inside = [number for number, name in enumerate(order) if within[name] is not None]
    first = inside[0] if inside else len(order)
    before = [name for name in order[:first] if within[name] is None]
    after = [name for name in order[first:] if within[name] is None]
    blocks = [[name for name in order if within[name] == block] for block in range(len(chain))]
    for part in (before, after, *blocks):
        _require_whole(candidates, part)
    return (
        candidates.only(before),
        [candidates.only(part) for part in blocks],
        candidates.only(after),
    )


def _require_whole(candidates: Candidates, part: Iterable[str]) -> None:
    for name in (names := set(part)):
        group = candidates.layers[name].group
        if group not in names:
            raise ModelError(
                f"The model cannot be measured block by block: {name} takes the same input as "
                f"{group}, which lies in another part of it."
            )
