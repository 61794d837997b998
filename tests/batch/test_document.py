import pytest

from compressor.batch.document import read_document
from compressor.errors import UsageError


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a document and reads it."""

    def write(text, **environment):
        path = tmp_path / "jobs.yaml"
        path.write_text(text, encoding="utf-8")
        return read_document(path, environment)

    return write


def test_every_part_knows_its_line(written):
    found = written("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n")
    assert found.value == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert [found.line(place) for place in [("a",), ("b",), ("b", 0), ("b", 1, "d")]] == [
        1,
        2,
        3,
        5,
    ]


def test_a_part_that_is_not_there_has_the_line_of_what_would_hold_it(written):
    assert written("a:\n  b: {}\n").line(("a", "b", "c", 3)) == 2


def test_variables_are_replaced_in_texts_only(written):
    found = written("a: ${HERE}/x\n${HERE}: $${HERE}\nn: ${N:-7}\nplain: $HERE", HERE="there")
    assert found.value == {"a": "there/x", "${HERE}": "${HERE}", "n": "7", "plain": "$HERE"}


def test_a_variable_that_is_not_set_is_named_with_its_line(written):
    with pytest.raises(UsageError, match=r"jobs\.yaml:2: .*MODELS is not set.*\$\{MODELS:-"):
        written("a: 1\nb: ${MODELS}\n")


def test_a_key_given_twice_is_refused_with_both_lines(written):
    with pytest.raises(UsageError, match=r":3: 'a' is given twice; first on line 1"):
        written("a: 1\nb: 2\na: 3\n")


def test_what_an_anchor_merges_in_may_be_overridden(written):
    found = written("base: &base {a: 1, b: 2}\njob:\n  <<: *base\n  b: 3\n")
    assert found.value["job"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "no YAML"),
        ("a: !!python/object:os.system {}", "no YAML"),
        ("a: &a [*a]", "part of itself"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
                for before, after in zip("abcde", "bcdef", strict=True)
            ),
            "too large",
        ),
    ],
)
def test_what_is_no_manifest_is_refused(text, message, written):
    with pytest.raises(UsageError, match=message):
        written(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml"):
        read_document(tmp_path / "none.yaml")
