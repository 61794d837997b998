"""Putting a state dict into a module: exactly, or with an error that names the first mismatch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressor.errors import ModelError


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], *, where: str, by_position: bool = False
) -> tuple[str, ...]:
    """Load ``state`` into ``module`` so that every tensor of the module comes from it.

    A file holds a shared tensor once; its other names are filled from the one that is there.

    Args:
        module: Receives the tensors, converted to its own types.
        state: Tensors by name.
        where: File they come from, for messages.
        by_position: If the names are another code base's, pair the tensors in order, provided
            that count and every shape agree.

    Returns:
        Notes that a person should read.

    Raises:
        ModelError: Naming the first key that is missing, unexpected or of another shape.
    """
    own = module.state_dict(keep_vars=True)
    state = _with_aliases(own, state)
    notes: tuple[str, ...] = ()
    if state.keys() != own.keys():
        if by_position and _fits_by_position(own, state):
            first = next(iter(zip(state, own, strict=True)))
            notes = (
                f"{where}: tensor names are foreign ({first[0]} for {first[1]} …); all "
                f"{len(own)} tensors were paired by position, every shape agreeing. Check the "
                "accuracy of the dense model before trusting what follows.",
            )
            state = dict(zip(own, state.values(), strict=True))
        else:
            _refuse_names(own, state, where)
    for key, tensor in own.items():
        if state[key].is_meta and not tensor.is_meta:
            raise ModelError(f"{where}: {key} has a shape but no values. Save it again.")
        if tensor.shape != state[key].shape:
            raise ModelError(shape_mismatch(where, key, tensor.shape, state[key].shape))
    module.load_state_dict(dict(state), strict=True)
    return notes


def shape_mismatch(where: str, key: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    """Return the message for a tensor whose shape is not the module's."""
    advice = "The weights belong to another architecture."
    if expected and found and expected[1:] == found[1:]:
        advice = (
            f"If this is the classifier, the checkpoint has {found[0]} classes and the model is "
            f"built for {expected[0]}: correct its config or factory (timm: --num-classes "
            f"{found[0]})."
        )
    elif "pos_embed" in key or "position" in key:
        advice = "The model was trained at another resolution or length: pass --input-size C,H,W."
    return f"{where}: {key} is {list(found)}, the model expects {list(expected)}. {advice}"


def _with_aliases(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names: dict[int, list[str]] = {}
    for key, tensor in own.items():
        names.setdefault(id(tensor), []).append(key)
    # A BatchNorm's counter of batches plays no part in eval mode, and old files lack it.
    counters = {
        key: tensor
        for key, tensor in own.items()
        if key.endswith("num_batches_tracked") and f"{key.rpartition('.')[0]}.running_mean" in state
    }
    filled = {**{key: tensor for key, tensor in counters.items() if key not in state}, **state}
    for group in names.values():
        present = next((key for key in group if key in state), None)
        if present is not None:
            filled |= {key: state[present] for key in group if key not in state}
    return filled


def _fits_by_position(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Return whether count and shapes agree in order, and no name stands at another place."""
    return len(own) == len(state) and all(
        own[ours].shape == state[theirs].shape and (ours == theirs or theirs not in own)
        for ours, theirs in zip(own, state, strict=True)
    )


def _refuse_names(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} of the model's {len(own)} tensors ({_some(missing)})")
    if unexpected:
        parts.append(f"has {len(unexpected)} that the model does not have ({_some(unexpected)})")
    raise ModelError(
        f"{where} {' and '.join(parts)}. The weights belong to another architecture or head."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
