"""What a run tells of its model beside its figures."""

from __future__ import annotations

import pytest
import torch

from compressor.evaluation.loop import Evaluation
from compressor.figures import doubts


def evaluation(accuracy: float | None, samples: int) -> Evaluation:
    return Evaluation(samples, accuracy, None, None, None, torch.zeros(samples, 2))


@pytest.mark.parametrize(
    ("accuracy", "samples", "classes", "doubtful"),
    [
        (0.019, 2568, 52, True),
        (0.922, 2568, 52, False),
        (0.52, 100, 2, True),
        (0.62, 100, 2, False),
        (0.0, 5, 3, True),
        (1.0, 5, 3, False),
        (None, 100, 2, False),
        (1.0, 100, 1, False),
    ],
)
def test_a_model_no_better_than_guessing_is_doubted(accuracy, samples, classes, doubtful):
    notes = doubts(evaluation(accuracy, samples), classes)
    assert bool(notes) == doubtful
    assert all(f"guessing among {classes} classes" in note for note in notes)
