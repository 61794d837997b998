import math

import pytest

from compressor.report.verdict import guidance, summary, verdict
from compressor.schema import ALREADY_FACTORIZED, DenseLayer

from .results import report


def test_the_summary_says_what_happened():
    assert summary(report()) == (
        "60.0 % of the layers' parameters kept, accuracy 92.2 → 91.7 % (−0.5 points), "
        "checkpoint 45.4 MB → 36.9 MB."
    )


def test_the_summary_of_a_model_compressed_again_says_what_its_share_is_of():
    before = (DenseLayer(name="a", reason=ALREADY_FACTORIZED),)
    again = report().model_copy(update={"left_dense": before})
    dense = len(again.layers)
    assert f"of the parameters of the {dense} layers that were dense kept" in summary(again)


def test_without_labels_the_summary_counts_unchanged_predictions():
    assert "98.0 % of the predictions unchanged" in summary(report(dense=None, compressed=None))


@pytest.mark.parametrize(
    ("case", "grade", "words"),
    [
        ((0.90, 0.91, 1000, 0.95), "good", "no accuracy was lost"),
        ((0.90, 0.88, 100, 0.90), "good", "within chance"),
        ((0.90, 0.895, 100_000, 0.99), "good", "less than a point"),
        ((0.90, 0.88, 100_000, 0.95), "fair", "moderate"),
        ((0.90, 0.80, 100_000, 0.85), "bad", "heavy"),
        ((0.90, 0.80, 20, 0.50), "bad", "heavy"),
        ((None, None, 100, 0.9), "fair", "Without labels"),
    ],
)
def test_the_verdict_weighs_the_loss(case, grade, words):
    dense, compressed, samples, agreement = case
    found, sentence = verdict(
        report(dense=dense, compressed=compressed, samples=samples, agreement=agreement)
    )
    assert found == grade
    assert words in sentence


def test_chance_is_two_standard_errors_of_the_disagreement():
    _, sentence = verdict(report(dense=0.9, compressed=0.88, samples=100, agreement=0.9))
    assert f"±{100 * 2 * math.sqrt(0.1 / 100):.1f} points" in sentence


def test_guidance_is_compared_with_the_best_unguided_choice():
    assert guidance(report()) == (
        "NC1 guidance gained on the selection data: KL 0.015 guided, 0.02 unguided. "
        "Chosen: nc1 β=0.5."
    )
    even = tuple(
        choice.model_copy(update={"kl": 0.0196}) if choice.guided else choice
        for choice in report().selection
    )
    assert "made no practical difference" in guidance(report(selection=even))
    unseen = tuple(
        choice.model_copy(update={"kl": 4e-9 if choice.guided else 6e-9})
        for choice in report().selection
    )
    assert "made no practical difference" in guidance(report(selection=unseen))
    worse = tuple(
        choice.model_copy(update={"kl": 0.03}) if choice.guided else choice for choice in even
    )
    assert "did not gain" in guidance(report(selection=worse))
    unguided = report().selection[:1]
    assert guidance(report(selection=unguided)) is None
