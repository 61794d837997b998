import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data.labels import map_labels
from compressor.errors import DataError

NAMES = ("Sports News", "World", "tech-talk")


def test_names_map_whatever_their_order():
    found = map_labels(["World", "tech-talk", "Sports News"], class_names=NAMES, num_classes=3)
    assert found.position == {"World": 1, "tech-talk": 2, "Sports News": 0}
    assert found.logits is None
    assert found.names == NAMES
    assert found.notes == ()


def test_case_spaces_and_hyphens_are_forgiven():
    found = map_labels(["sports_news", "WORLD", "Tech Talk"], class_names=NAMES, num_classes=3)
    assert found.position == {"sports_news": 0, "WORLD": 1, "Tech Talk": 2}


def test_exact_names_win_over_forgiven_ones():
    found = map_labels(["a", "A"], class_names=("A", "a"), num_classes=2)
    assert found.position == {"a": 1, "A": 0}


def test_ambiguous_forgiven_names_do_not_map():
    with pytest.raises(DataError):
        map_labels(["a b", "c"], class_names=("A_B", "a-b", "c"), num_classes=3)


def test_part_of_the_classes_keeps_their_logits_and_says_so():
    found = map_labels(["tech-talk", "World"], class_names=NAMES, num_classes=3)
    assert found.logits == (1, 2)
    assert found.position == {"World": 0, "tech-talk": 1}
    assert found.names == ("World", "tech-talk")
    assert "2 of the model's 3 classes" in found.notes[-1]


@given(st.sets(st.integers(0, 9), min_size=2), st.booleans())
def test_numbers_are_logits(numbers, written):
    labels = [str(n) for n in numbers] if written else list(numbers)
    found = map_labels(labels, class_names=tuple("abcdefghij"), num_classes=10)
    logits = found.logits or tuple(range(10))
    for label, place in found.position.items():
        assert logits[place] == int(label)
        assert found.names[place] == "abcdefghij"[int(label)]
    assert (found.logits is None) == (len(numbers) == 10)


def test_names_that_look_like_numbers_are_names_first():
    found = map_labels([7, 3], class_names=("7", "3"), num_classes=2)
    assert found.position == {7: 0, 3: 1}


def test_wnids_map_by_imagenet():
    from compressor.models.imagenet import imagenet_synsets

    found = map_labels(
        ["n01443537", "n01440764"],
        class_names=None,
        num_classes=1000,
        synsets=imagenet_synsets,
    )
    assert found.logits == (0, 1)
    assert found.position == {"n01440764": 0, "n01443537": 1}


def test_the_datas_own_order_serves_a_model_without_names_only():
    order = ("ant", "bee")
    for unnamed in (None, ("LABEL_0", "LABEL_1")):
        found = map_labels(["bee", "ant"], class_names=unnamed, num_classes=2, order=order)
        assert found.position == {"ant": 0, "bee": 1}
        assert "own order" in found.notes[0]
    with pytest.raises(DataError):
        map_labels(["bee", "ant"], class_names=("cat", "dog"), num_classes=2, order=order)
    with pytest.raises(DataError):
        map_labels(["bee", "ant"], class_names=None, num_classes=3, order=order)


def test_labels_that_cannot_be_mapped_list_both_sides_shortened():
    labels = [f"topic {i}" for i in range(30)]
    with pytest.raises(DataError) as caught:
        map_labels(["World", *labels], class_names=NAMES, num_classes=3)
    message = str(caught.value)
    assert "30 of the data's 31 labels" in message
    assert "topic 0" in message
    assert "22 more" in message
    assert "Sports News, World, tech-talk" in message


def test_a_number_too_large_names_the_models_classes():
    with pytest.raises(DataError, match=r"5\. The model has 3 classes without names"):
        map_labels([0, 1, 5], class_names=None, num_classes=3)


@pytest.mark.parametrize(("labels", "message"), [(["a", "a"], "one class"), ([], "no labels")])
def test_one_class_or_none_is_an_error(labels, message):
    with pytest.raises(DataError, match=message):
        map_labels(labels, class_names=("a", "b"), num_classes=2)
