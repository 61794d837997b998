"""Drawing the samples of each split, seeded; those that judge are in no other (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError

Indices = NDArray[np.int64]

# Each draw has its own stream of random numbers, so that, say, a limit on the test samples does
# not change which samples calibrate.
_CALIBRATION, _SELECTION, _TEST, _RECOVERY = range(4)


@dataclass(frozen=True)
class Draw:
    """Where the samples of one split come from.

    Args:
        origin: Name of the data's own split.
        indices: Positions [N] in it, ascending unless mixed.
        mixed: Whether they come in a random order that batches are to keep.
    """

    origin: str
    indices: Indices
    mixed: bool = False


@dataclass(frozen=True)
class Draws:
    """The draws of a run, and what to tell about them.

    Args:
        calibration: What statistics come from.
        selection: What choices are made on; disjoint from all others.
        test: What is looked at once, at the end; disjoint from all others.
        recovery: What training after the truncation learns from.
        notes: What a person should know.
    """

    calibration: Draw
    selection: Draw
    test: Draw
    recovery: Draw
    notes: tuple[str, ...] = ()


def stratified_sample(
    labels: NDArray[np.int64] | None,
    pool: Indices,
    size: int,
    rng: np.random.Generator,
    *,
    every_class: bool = True,
) -> Indices:
    """Draw ``size`` positions from ``pool``, each class in proportion to its share of the pool.

    Remainders go to the classes that lack most (largest remainder method).

    Args:
        labels: Class [N] of every sample (not only of the pool), or None to draw without regard
            to classes.
        pool: Positions [P] to draw from.
        size: Number of positions; P or more takes the whole pool.
        rng: Source of randomness.
        every_class: Draw every class of the pool at least once where the size allows, so that
            statistics lack none. Not for test samples: rare classes would weigh too much in the
            accuracy.

    Returns:
        Positions [min(size, P)], ascending.
    """
    if size >= len(pool):
        return np.sort(pool)
    if labels is None:
        return np.sort(rng.choice(pool, size=size, replace=False))
    shuffled = rng.permutation(pool)
    _, inverse, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    quota = size * counts / len(pool)
    take = np.floor(quota).astype(np.int64)
    least = 1 if every_class else 0
    if every_class and size >= len(counts):
        take = np.maximum(take, 1)
    while take.sum() < size:
        take[np.argmax(np.where(take < counts, quota - take, -np.inf))] += 1
    while take.sum() > size:
        take[np.argmax(np.where(take > least, take - quota, -np.inf))] -= 1
    grouped = shuffled[np.argsort(inverse, kind="stable")]
    rank_in_class = np.arange(len(pool)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(grouped[rank_in_class < np.repeat(take, counts)])


def draw_splits(
    labels: Mapping[str, NDArray[np.int64] | int],
    *,
    calibration: int,
    selection: int | None = None,
    limit: int | None,
    recovery: int = 0,
    seed: int,
) -> Draws:
    """Choose the samples of each split.

    With a test split (or validation in its stead) and a train split: calibration comes from train,
    at most two thirds of it; selection, at most half as large as calibration, from validation if
    that is there besides test, else from the rest of train; test is all of test. With one split
    alone: 40 % at most calibrate, 20 % at most select, all others test. Recovery learns from all of
    train but what selects, or with one split alone from what calibrates.

    Args:
        labels: For each of the data's own splits (train, validation, test, all) the class [N] of
            every sample, or only their number N where there are no labels.
        calibration: Largest number of calibration samples.
        selection: Largest number of selection samples in place of half the calibration's.
        limit: Largest number of test samples, or None for all.
        recovery: Largest number of samples to recover on.
        seed: Seed of every draw.

    Raises:
        DataError: If a split would be empty.
    """
    sizes = {name: _size(value) for name, value in labels.items()}
    classes = {name: None if isinstance(value, int) else value for name, value in labels.items()}
    names = [name for name in ("train", "all", "validation", "test") if sizes.get(name)]
    if not names:
        raise DataError("The data is empty: every split has 0 samples. Check the reference.")
    source, held_out = names[0], names[-1]
    rng = [np.random.default_rng((seed, stream)) for stream in range(4)]
    pool = np.arange(sizes[source])

    single = len(names) == 1
    wanted = min(calibration, int(len(pool) * (0.4 if single else 2 / 3)))
    first = stratified_sample(classes[source], pool, wanted, rng[_CALIBRATION])
    rest = np.setdiff1d(pool, first)
    lessons = first
    notes = []
    if single:
        wanted = min(selection or calibration // 2, len(pool) // 5)
        second = Draw(source, stratified_sample(classes[source], rest, wanted, rng[_SELECTION]))
        rest = np.setdiff1d(rest, second.indices)
        notes.append(
            f"The data has one split of {len(pool)} samples; calibration, selection and test are "
            f"{'drawn' if classes[source] is None else 'stratified draws'} from it (seed {seed})."
        )
    else:
        chosen_from = "validation" if names[1:-1] == ["validation"] else source
        remaining = rest if chosen_from == source else np.arange(sizes[chosen_from])
        second = Draw(
            chosen_from,
            stratified_sample(
                classes[chosen_from], remaining, selection or len(first) // 2, rng[_SELECTION]
            ),
        )
        lessons = pool if chosen_from != source else np.setdiff1d(pool, second.indices)
        rest = np.arange(sizes[held_out])
        if held_out == "validation":
            notes.append("The data has no labelled test split; its validation split is the test.")
    if limit is not None and limit < len(rest):
        how = "seeded" if classes[held_out] is None else "stratified, seeded"
        notes.append(f"Test is a {how} draw of {limit} of {len(rest)} samples (limit).")
        rest = stratified_sample(classes[held_out], rest, limit, rng[_TEST], every_class=False)
    draws = Draws(
        calibration=Draw(source, first),
        selection=second,
        test=Draw(held_out, rest),
        # One order, of which smaller batches take a shorter beginning.
        recovery=Draw(source, rng[_RECOVERY].permutation(lessons)[:recovery], mixed=True),
        notes=tuple(notes),
    )
    _refuse_empty(draws, sizes)
    return draws


def _size(value: NDArray[np.int64] | int) -> int:
    return value if isinstance(value, int) else len(value)


def _refuse_empty(draws: Draws, sizes: Mapping[str, int]) -> None:
    for name in ("calibration", "selection", "test"):
        if len(getattr(draws, name).indices) == 0:
            found = ", ".join(f"{split} {size}" for split, size in sizes.items())
            raise DataError(
                f"Too few samples: {name} would be empty (found {found}). Give more data, or a "
                f"larger number of calibration samples; at least 5 samples are needed."
            )
