import pytest

from compressor.data.columns import Column, choose_columns
from compressor.data.digits import DigitsSource
from compressor.data.images import ImageFolderSource
from compressor.errors import DataError, UsageError
from compressor.settings import DataSettings

TEXT = Column("sentence", "text", 100, 100)
LABEL = Column("label", "integer", 2, 100)
PREMISE, HYPOTHESIS = (Column(name, "text", 99, 100) for name in ("premise", "hypothesis"))
IDS = Column("idx", "integer", 100, 100)


def choose(*columns, **named):
    chosen = choose_columns(columns, where="data.csv", **named)
    return chosen.sample, chosen.label


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((TEXT, LABEL), ("sentence", "label")),
        ((LABEL, TEXT, IDS), ("sentence", "label")),
        ((Column("quote", "text", 99, 100), Column("mood", "text", 4, 100)), ("quote", "mood")),
        ((Column("quote", "text", 99, 100), Column("mood", "class", 99, 100)), ("quote", "mood")),
        (
            (Column("title", "text", 99, 100), Column("text", "text", 99, 100), LABEL),
            ("text", "label"),
        ),
        (
            (Column("picture", "image", 0, 100), Column("kind", "class", 5, 100)),
            ("picture", "kind"),
        ),
        ((TEXT,), ("sentence", None)),
    ],
)
def test_columns_are_told_by_type_name_and_content(columns, expected):
    assert choose(*columns) == expected


def test_named_columns_are_taken():
    other = Column("title", "text", 100, 100)
    assert choose(TEXT, other, LABEL, text_column="title") == ("title", "label")
    assert choose(TEXT, LABEL, IDS, label_column="idx") == ("sentence", "idx")


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ((TEXT, LABEL), {"text_column": "body"}, r"no column 'body' \(--text-column\)"),
        ((TEXT, LABEL), {"label_column": "y"}, r"no column 'y' \(--label-column\)"),
        ((TEXT, IDS), {}, "which column holds the label"),
        ((TEXT, Column("a", "text", 2, 9), Column("b", "text", 2, 9)), {}, "holds the label"),
        ((PREMISE, HYPOTHESIS, LABEL), {}, "which column holds the text"),
        ((IDS, LABEL), {}, "which column holds the text"),
    ],
)
def test_what_cannot_be_told_lists_the_columns(columns, named, message):
    with pytest.raises(DataError, match=message) as caught:
        choose(*columns, **named)
    assert all(f"{column.name} ({column.kind})" in str(caught.value) for column in columns)


def test_a_first_row_is_no_header():
    first = Column("cocoa", "text", 4, 100, holds_its_name=True)
    with pytest.raises(DataError, match=r"no header: 'cocoa'.*--label-column cocoa"):
        choose(TEXT, first)
    assert choose(TEXT, first, label_column="cocoa") == ("sentence", "cocoa")


@pytest.mark.parametrize("source", [DigitsSource(), ImageFolderSource()])
def test_data_without_columns_is_asked_for_none(source):
    options = DataSettings(data="sklearn:digits", label_column="klass")
    with pytest.raises(UsageError, match="no columns: leave out --label-column klass"):
        source.read("sklearn:digits", options)
