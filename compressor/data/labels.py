"""Finding the model's logit for each label of the data: by name, ImageNet wnid, number or order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from compressor.errors import DataError

_GENERIC = re.compile(r"(label|class)[_ -]?\d+", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
Label = str | int
_NUMBERED = "Labels were mapped to the model's logits by number."


@dataclass(frozen=True)
class ClassMap:
    """Where the data's labels are among the model's logits.

    Args:
        position: For each raw label, its position in ``names`` (and in ``logits``).
        names: Name of each class that is compared.
        logits: Index of each class's logit, ascending; None where all logits are covered.
        notes: How labels were mapped, where it is not by name, and what is not covered.
    """

    position: dict[Label, int]
    names: tuple[str, ...]
    logits: tuple[int, ...] | None
    notes: tuple[str, ...] = ()


def map_labels(
    labels: Iterable[Label],
    *,
    class_names: Sequence[str] | None,
    num_classes: int | None,
    order: Sequence[str] | None = None,
    synsets: Callable[[int], Sequence[str] | None] = lambda count: None,
) -> ClassMap:
    """Map raw labels to logits; the first of these ways that maps every label is taken.

    1. the model's class names, as they are, then without regard to case, spaces, ``_`` and ``-``;
    2. WordNet ids of ImageNet, where the model has as many logits as a known ImageNet subset;
    3. numbers, counted from 0;
    4. the data's own order of classes (class folders sorted, a ClassLabel column), where the model
       has as many logits and no names for them.

    Args:
        labels: Raw labels; repetitions do no harm.
        class_names: Name of each logit. Names such as LABEL_3 count as none.
        num_classes: Number of logits, where it is known.
        order: The data's class names in its own order.
        synsets: Gives the wnid of each logit for a number of logits, or None.

    Raises:
        DataError: If there is one class only, or no way maps all labels; the message lists both
            sides.
    """
    present = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(present) < 2:
        raise DataError(
            f"The data has one class only ({present[0]!r}); at least two are needed to compare "
            f"class logits. Check the label column."
            if present
            else "The data has no labels."
        )
    named = None if class_names is None or _all_generic(class_names) else tuple(class_names)
    count = num_classes if num_classes is not None else (len(named) if named else None)
    ways: list[tuple[str | None, Callable[[], dict[Label, int] | None]]] = [
        (None, lambda: _by_name(present, named)),
        (None, lambda: _by_folded_name(present, named)),
        (
            "Labels were mapped as ImageNet wnids to the model's logits.",
            lambda: _by_wnid(present, count, synsets),
        ),
        (_NUMBERED, lambda: _by_number(present, count)),
        (
            "The model does not name its classes; labels were mapped by the data's own order of "
            "classes.",
            lambda: None if named else _by_order(present, count, order),
        ),
    ]
    for note, way in ways:
        found = way()
        if found is not None:
            return _class_map(found, named, count, [note] if note else [])
    raise DataError(_mismatch(present, named, count))


def _class_map(
    logit: dict[Label, int], named: Sequence[str] | None, count: int | None, notes: list[str]
) -> ClassMap:
    covered = sorted(set(logit.values()))
    total = count if count is not None else covered[-1] + 1
    if len(covered) == total:
        by_logit = {index: str(label) for label, index in logit.items()}
        names = tuple(named or (by_logit[index] for index in covered))
        told = tuple(note for note in notes if note != _NUMBERED)  # goes without saying
        return ClassMap(logit, names, None, told)
    notes.append(
        f"The data covers {len(covered)} of the model's {total} classes; logits are compared over "
        f"those {len(covered)}."
    )
    position = {index: place for place, index in enumerate(covered)}
    if named:
        names = tuple(named[index] for index in covered)
    else:
        by_logit = {index: str(label) for label, index in logit.items()}
        names = tuple(by_logit[index] for index in covered)
    mapped = {label: position[index] for label, index in logit.items()}
    return ClassMap(mapped, names, tuple(covered), tuple(notes))


def _by_name(present: list[Label], named: Sequence[str] | None) -> dict[Label, int] | None:
    if named is None:
        return None
    return _complete(present, _unambiguous(named))


def _by_folded_name(present: list[Label], named: Sequence[str] | None) -> dict[Label, int] | None:
    if named is None:
        return None
    index = _unambiguous([_folded(name) for name in named])
    return _complete(present, index, _folded)


def _by_wnid(
    present: list[Label], count: int | None, synsets: Callable[[int], Sequence[str] | None]
) -> dict[Label, int] | None:
    if count is None or not all(_WNID.fullmatch(str(label)) for label in present):
        return None
    known = synsets(count)
    return None if known is None else _complete(present, _unambiguous(known))


def _by_number(present: list[Label], count: int | None) -> dict[Label, int] | None:
    numbers: dict[Label, int] = {}
    for label in present:
        text = str(label).strip()
        if not text.isdecimal() or (count is not None and int(text) >= count):
            return None
        numbers[label] = int(text)
    return numbers


def _by_order(
    present: list[Label], count: int | None, order: Sequence[str] | None
) -> dict[Label, int] | None:
    if order is None or (count is not None and len(order) != count):
        return None
    return _complete(present, _unambiguous(order))


def _complete(
    present: list[Label], index: dict[str, int], key: Callable[[str], str] = str
) -> dict[Label, int] | None:
    found = {label: index.get(key(str(label))) for label in present}
    complete = {label: place for label, place in found.items() if place is not None}
    return complete if len(complete) == len(present) else None


def _unambiguous(names: Sequence[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    twice: set[str] = set()
    for place, name in enumerate(names):
        if name in index:
            twice.add(name)
        index[name] = place
    return {name: place for name, place in index.items() if name not in twice}


def _folded(name: str) -> str:
    return " ".join(re.sub(r"[_\-\s]+", " ", name).split()).casefold()


def _all_generic(names: Sequence[str]) -> bool:
    return all(_GENERIC.fullmatch(name) for name in names)


def _mismatch(present: list[Label], named: Sequence[str] | None, count: int | None) -> str:
    index = {_folded(name) for name in named or ()}
    unmapped = [
        label
        for label in present
        if _folded(str(label)) not in index
        and not (str(label).isdecimal() and (count is None or int(str(label)) < count))
    ]
    model = f"{count if count is not None else 'an unknown number of'} classes"
    model += f": {_shortened(named)}" if named else " without names"
    return (
        f"{len(unmapped)} of the data's {len(present)} labels are none of the model's classes: "
        f"{_shortened(unmapped or present)}. The model has {model}. Labels map by name (id2label "
        f"in config.json), ImageNet wnid, or number from 0: rename one side, or use a model for "
        f"these classes."
    )


def _shortened(names: Sequence[object], shown: int = 8) -> str:
    rest = len(names) - shown
    return ", ".join(map(str, names[:shown])) + (f", … ({rest} more)" if rest > 0 else "")
