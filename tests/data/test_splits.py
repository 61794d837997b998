import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data.splits import draw_splits, stratified_sample
from compressor.errors import DataError

LABELS = st.lists(st.integers(0, 6), min_size=5, max_size=200).map(np.array)


@given(LABELS, st.integers(0, 250), st.integers(0, 3))
def test_a_stratified_sample_has_the_size_and_the_proportions_asked_for(labels, size, seed):
    pool = np.arange(len(labels))
    drawn = stratified_sample(labels, pool, size, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == min(size, len(labels))
    assert (np.diff(drawn) > 0).all()
    classes, counts = np.unique(labels, return_counts=True)
    taken = np.array([(labels[drawn] == c).sum() for c in classes])
    if len(classes) <= size:
        assert (taken >= 1).all()
    fair = min(size, len(labels)) * counts / len(labels)
    # a class gains or loses one by rounding; it may lose more to classes that need their first one
    assert (taken <= np.ceil(fair) + 1e-9).all() or (taken[taken > np.ceil(fair)] == 1).all()
    needy = (fair < 1).sum()
    assert (taken >= np.floor(fair) - needy).all()


def test_only_the_pool_is_drawn_from():
    labels = np.array([0, 1] * 50)
    pool = np.arange(10, 40)
    drawn = stratified_sample(labels, pool, 20, np.random.default_rng(0))
    assert set(drawn) <= set(pool)
    assert np.bincount(labels[drawn]).tolist() == [10, 10]


def test_rare_classes_are_drawn_where_the_size_allows():
    labels = np.array([0] * 96 + [1, 2, 3, 3])
    for size, expected in ((5, [2, 1, 1, 1]), (4, [1, 1, 1, 1]), (3, [3])):
        drawn = stratified_sample(labels, np.arange(100), size, np.random.default_rng(0))
        assert np.bincount(labels[drawn]).tolist() == expected


def test_a_limit_leaves_the_weight_of_rare_classes_as_it_is():
    labels = np.array([0] * 960 + list(range(1, 41)))
    draws = draw_splits({"train": labels, "test": labels}, calibration=100, limit=50, seed=0)
    drawn = np.bincount(labels[draws.test.indices], minlength=41)
    assert drawn[0] == 48
    assert drawn.sum() == 50
    assert np.bincount(labels[draws.calibration.indices]).min() == 1


def test_without_labels_a_plain_draw():
    drawn = stratified_sample(None, np.arange(100), 10, np.random.default_rng(0))
    assert len(set(drawn)) == 10


@given(
    LABELS,
    st.one_of(st.none(), LABELS),
    st.one_of(st.none(), LABELS),
    st.integers(3, 100),
    st.one_of(st.none(), st.integers(1, 50)),
)
def test_splits_are_disjoint_and_within_bounds(train, validation, test, calibration, limit):
    splits = {"train": train, "validation": validation, "test": test}
    splits = {name: labels for name, labels in splits.items() if labels is not None}
    draws = draw_splits(splits, calibration=calibration, limit=limit, seed=1)
    chosen = [draws.calibration, draws.selection, draws.test]
    taken = [(draw.origin, index) for draw in chosen for index in draw.indices.tolist()]
    assert len(taken) == len(set(taken))
    for draw in chosen:
        assert len(draw.indices) > 0
        assert draw.indices.max() < len(splits[draw.origin])
    assert len(draws.calibration.indices) <= calibration
    assert len(draws.selection.indices) <= max(1, calibration // 2)
    assert limit is None or len(draws.test.indices) <= limit


@given(
    LABELS,
    st.one_of(st.none(), LABELS),
    st.one_of(st.none(), LABELS),
    st.integers(3, 100),
    st.integers(0, 250),
)
def test_recovery_learns_from_all_that_nothing_is_judged_on(
    train, validation, test, calibration, most
):
    splits = {"train": train, "validation": validation, "test": test}
    splits = {name: labels for name, labels in splits.items() if labels is not None}
    draws = draw_splits(splits, calibration=calibration, limit=None, recovery=most, seed=1)
    plain = draw_splits(splits, calibration=calibration, limit=None, seed=1)
    taken = {(draws.recovery.origin, index) for index in draws.recovery.indices.tolist()}
    judged = {
        (draw.origin, index)
        for draw in (draws.selection, draws.test)
        for index in draw.indices.tolist()
    }
    rest = {("train", index) for index in range(len(train))} - judged
    assert taken <= rest
    # Of a single split the samples that the limit left out of the test are none to learn from.
    found = min(most, len(rest if len(splits) > 1 else draws.calibration.indices))
    assert len(draws.recovery.indices) == len(taken) == found
    for name in ("calibration", "selection", "test"):
        assert (getattr(draws, name).indices == getattr(plain, name).indices).all()


def test_train_and_test_calibrate_on_train_and_test_on_all_of_test():
    labels = np.array([0, 1] * 1000)
    draws = draw_splits({"train": labels, "test": labels}, calibration=100, limit=None, seed=0)
    assert (draws.calibration.origin, draws.selection.origin, draws.test.origin) == (
        "train",
        "train",
        "test",
    )
    assert [len(d.indices) for d in (draws.calibration, draws.selection)] == [100, 50]
    assert draws.test.indices.tolist() == list(range(2000))


def test_validation_selects_where_there_is_a_test_split_too_and_else_tests():
    labels = np.array([0, 1] * 100)
    three = {"train": labels, "validation": labels, "test": labels}
    draws = draw_splits(three, calibration=100, limit=None, seed=0)
    assert draws.selection.origin == "validation"
    two = {"train": labels, "validation": labels}
    draws = draw_splits(two, calibration=100, limit=None, seed=0)
    assert (draws.selection.origin, draws.test.origin) == ("train", "validation")
    assert "validation split is the test" in draws.notes[0]


def test_a_single_split_is_shared_out():
    draws = draw_splits({"all": np.array([0, 1] * 50)}, calibration=1024, limit=None, seed=0)
    sizes = [len(d.indices) for d in (draws.calibration, draws.selection, draws.test)]
    assert sizes == [40, 20, 40]
    assert "stratified" in draws.notes[0]


def test_the_seed_decides_and_a_limit_moves_nothing_but_the_test():
    labels = {"all": np.random.default_rng(0).integers(0, 5, 500)}
    first, again, limited, other = (
        draw_splits(labels, calibration=64, limit=limit, seed=seed)
        for limit, seed in ((None, 0), (None, 0), (30, 0), (None, 1))
    )
    assert first.calibration.indices.tolist() == again.calibration.indices.tolist()
    assert first.test.indices.tolist() == again.test.indices.tolist()
    assert first.selection.indices.tolist() == limited.selection.indices.tolist()
    assert set(limited.test.indices) < set(first.test.indices)
    assert "30 of" in limited.notes[1]
    assert first.calibration.indices.tolist() != other.calibration.indices.tolist()


@pytest.mark.parametrize("splits", [{}, {"all": 0}, {"all": 4}, {"train": 1, "test": 3}])
def test_too_few_samples_are_an_error(splits):
    with pytest.raises(DataError, match=r"empty"):
        draw_splits(splits, calibration=10, limit=None, seed=0)
