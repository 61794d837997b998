"""The definitions of METHOD.md written out in NumPy float64, and random labelled rows."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st


@dataclass(frozen=True)
class Problem:
    """Labelled rows: float32 or float64, with an offset, unequal and perhaps empty classes."""

    rows: torch.Tensor
    labels: torch.Tensor
    classes: int

    @property
    def wide(self):
        """The rows as float64 arrays, exactly the numbers that the accumulator is given."""
        return self.rows.double().numpy(), self.labels.numpy()

    @property
    def tolerance(self):
        """Relative to the rows' own scale, once their offset is taken off."""
        return 1e-9 if self.rows.dtype == torch.float64 else 2e-5


def random_problem(seed, samples, features, classes, *, offset=0.0, dtype=torch.float64):
    """Return rows around class means; some classes are rare, some stay empty."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(classes, 0.7))
    labels = generator.choice(classes, size=samples, p=weights)
    centres = generator.normal(size=(classes, features)) * generator.uniform(0.1, 3)
    rows = centres[labels] + generator.normal(size=(samples, features)) + offset
    return Problem(torch.tensor(rows).to(dtype), torch.tensor(labels), classes)


@st.composite
def problems(draw, max_features=12):
    """Strategy of problems: fewer samples than dimensions, one class alone, offsets of 1e3 …"""
    return random_problem(
        draw(st.integers(0, 2**32 - 1)),
        samples=draw(st.integers(1, 60)),
        features=draw(st.integers(1, max_features)),
        classes=draw(st.integers(1, 7)),
        offset=draw(st.sampled_from([0.0, -50.0, 1e3])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    )


@dataclass(frozen=True)
class Naive:
    """Counts [C], means [C, D], covariances [D, D] and within-class variances [C]."""

    counts: np.ndarray
    means: np.ndarray
    traces: np.ndarray
    mean: np.ndarray
    within: np.ndarray
    between: np.ndarray
    total: np.ndarray


def naive(rows, labels, classes, weights=None):
    """Compute every moment from its definition, one row at a time."""
    weights = np.ones(len(rows)) if weights is None else weights
    features = rows.shape[1]
    counts, traces = np.zeros(classes), np.zeros(classes)
    means = np.zeros((classes, features))
    within, between, total = (np.zeros((features, features)) for _ in range(3))
    mass = weights.sum()
    mean = (rows * weights[:, None]).sum(0) / mass
    for label in range(classes):
        members, shares = rows[labels == label], weights[labels == label]
        counts[label] = shares.sum()
        if counts[label] == 0:
            continue
        means[label] = (members * shares[:, None]).sum(0) / counts[label]
        for row, share in zip(members, shares, strict=True):
            within += share * np.outer(row - means[label], row - means[label])
            traces[label] += share * ((row - means[label]) ** 2).sum()
        step = means[label] - mean
        between += counts[label] / mass * np.outer(step, step)
    for row, share in zip(rows, weights, strict=True):
        total += share / mass * np.outer(row - mean, row - mean)
    return Naive(counts, means, traces, mean, within / mass, between, total)
