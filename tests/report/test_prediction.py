"""The predicted frontier as a person reads it: through what was measured, and never as measured."""

import pytest

from compressor.report.html import report_page
from compressor.report.prediction import shown_frontier
from compressor.schema import FrontierPoint, RecoveryFigures

from .results import report
from .test_html import FRONTIER, Page


def points(*pairs):
    return tuple(FrontierPoint(share=share, loss=loss) for share, loss in pairs)


def shown(frontier=FRONTIER, **changes):
    return shown_frontier(report().model_copy(update={"frontier": frontier, **changes}))


def test_the_curve_goes_through_the_measured_loss():
    # report() lost 0.0156 nats, half of what was predicted: 0.1 nats are 0.2 of the prediction.
    found = shown()
    assert "predicted to reach 0.1 nats at 30 %" in found.sentence
    assert "1 nats at 10 %" in found.sentence
    assert "This run keeps 60.0 %" in found.sentence
    assert "No ranks go below 5.0 %." in found.sentence
    assert "0.0156 nats (ringed); the prediction alone was 0.0312" in found.height


def test_between_two_points_the_loss_is_log_linear():
    frontier = FRONTIER.model_copy(
        update={
            "run": FrontierPoint(share=0.9, loss=0.0156),
            "points": points((0.05, 10.0), (0.1, 1.0), (0.3, 0.01), (1.0, 0.0)),
        }
    )
    # 0.1 is halfway between 1 and 0.01.
    assert "0.1 nats at 20 %" in shown(frontier).sentence


def test_levels_that_the_run_has_passed_or_no_rank_reaches_are_not_named():
    frontier = FRONTIER.model_copy(update={"points": points((0.05, 0.3), (0.1, 0.2), (1.0, 0.0))})
    assert "0.1 nats at 10 %" in shown(frontier).sentence
    assert " 1 nats" not in shown(frontier).sentence
    assert "0.01" not in shown().sentence


def test_what_was_measured_is_the_truncation_without_training():
    trained = RecoveryFigures(
        steps=10,
        best_step=10,
        kl_before=0.5,
        kl_after=0.1,
        without=report().compressed.model_copy(update={"kl_to_dense": 0.312}),
    )
    assert "0.312 nats (ringed)" in shown(recovery=trained).height


@pytest.mark.parametrize("unit", ["nats", "energy"])
def test_without_a_loss_of_the_run_nothing_sets_the_height(unit):
    dense = FRONTIER.model_copy(update={"unit": unit, "run": FrontierPoint(share=1.0, loss=0.0)})
    found = shown(dense)
    assert "Its height is predicted too" in found.height
    assert ("0.01 nats" in found.sentence) is (unit == "nats")
    assert "ringed" not in found.height


def test_other_units_are_scaled_without_a_word_of_nats_predicted():
    found = shown(FRONTIER.model_copy(update={"unit": "energy"}))
    assert "0.1 nats at 30 %" in found.sentence
    assert found.height.endswith("(ringed).")


def test_the_page_says_that_it_is_predicted_and_what_measures_it():
    page = Page(report_page(report().model_copy(update={"frontier": FRONTIER})))
    assert "frontier" in page.ids
    assert "Predicted, not measured" in page.text
    assert "compressor sweep measures accuracy" in page.text
    assert len(page.ids) == len(set(page.ids))


def test_without_one_there_is_no_section():
    assert shown(None) is None
    assert shown(FRONTIER.model_copy(update={"points": points((1.0, 0.0))})) is None
    assert "frontier" not in Page(report_page(report())).ids
