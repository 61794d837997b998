import base64
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.data.tables import TableSource
from compressor.errors import DataError
from compressor.settings import DataSettings

ROWS = [("null", "pos"), ("NA", "neg"), ('he said "no", twice', "pos"), ("007", "neg"), ("", "pos")]


def read(path, **options):
    assert TableSource().recognises(str(path))
    return TableSource().read(str(path), DataSettings(data=str(path), **options))


def texts(split):
    return [split.samples[index] for index in range(len(split.samples))]


def test_csv_cells_are_the_text_that_stands_there(write_table):
    split = read(write_table("data.csv", ROWS))["all"]
    assert texts(split) == [text for text, _ in ROWS]
    assert split.labels == tuple(label for _, label in ROWS)


def test_tsv_quotation_marks_are_characters(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_bytes(b'sentence\tlabel\r\n"open\t1\r\nnull\t0\r\nends "so"\t1\r\n5\t0\r\n')
    split = read(path)["all"]
    assert texts(split) == ['"open', "null", 'ends "so"', "5"]
    assert split.labels == ("1", "0", "1", "0")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x\nb,y\nc,x\nd,y\n", encoding="utf-8-sig")
    assert read(path)["all"].labels == ("x", "y", "x", "y")


def test_a_table_without_a_header_is_told(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("".join(f"story {n},{'cocoa' if n % 2 else 'tea'}\n" for n in range(20)))
    with pytest.raises(DataError, match=r"data\.csv.* no header: 'tea'"):
        read(path)
    assert len(read(path, label_column="tea")["all"].labels) == 19


def test_json_lines_keep_their_types(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"text": text, "label": index % 2} for index, (text, _) in enumerate(ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    split = read(path)["all"]
    assert texts(split) == [text for text, _ in ROWS]
    assert split.labels == (0, 1, 0, 1, 0)


def test_parquet_keeps_class_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["neg", "pos"])}
    )
    table = datasets.Dataset.from_dict({"text": list("abcd"), "mood": [1, 0, 1, 0]}, features)
    table.to_parquet(tmp_path / "data.parquet")
    split = read(tmp_path / "data.parquet")["all"]
    assert split.labels == ("pos", "neg", "pos", "neg")
    assert split.names == ("neg", "pos")


@pytest.mark.parametrize("middle", ["dev", "val", "validation", "valid"])
def test_a_directory_is_split_by_its_file_names(write_table, middle):
    for count, name in ((4, "SST-2_train"), (3, f"SST-2_{middle}"), (2, "SST-2_test")):
        path = write_table(f"data/{name}.tsv", ROWS[:count], delimiter="\t")
    (path.parent / "README.md").write_text("what this is")
    splits = read(path.parent)
    sizes = {name: len(split.samples) for name, split in splits.items()}
    assert sizes == {"train": 4, "validation": 3, "test": 2}


def test_parts_of_a_split_are_joined_in_order(write_table):
    write_table("data/train-00001-of-00002.csv", ROWS[3:])
    write_table("data/test.csv", ROWS)
    path = write_table("data/train-00000-of-00002.csv", ROWS[:3])
    assert texts(read(path.parent)["train"]) == [text for text, _ in ROWS]


@pytest.mark.parametrize("folder", ["a[1]", "b*", "c ?", "ü, {d}"])
def test_paths_are_no_patterns(write_table, folder):
    write_table(f"{folder[0]}1/data.csv", ROWS[:2])
    assert len(read(write_table(f"{folder}/data.csv", ROWS))["all"].samples) == 5


def test_all_labels_missing_is_unlabelled_and_some_missing_is_an_error(write_table):
    hidden = write_table("hidden.csv", [(text, "") for text, _ in ROWS])
    assert read(hidden)["all"].labels is None
    partly = write_table("partly.csv", [*ROWS, ("no label", " ")])
    with pytest.raises(DataError, match=r"1 of 6 rows have no label, the first is row 5"):
        read(partly)


def test_class_folders_with_a_list_of_files_are_no_table(write_images):
    root = write_images("pictures", count=1)
    (root / "list.csv").write_text("file,label\n")
    assert not TableSource().recognises(str(root))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"", "is empty"),
        ("data.csv", b"text,text\na,b\n", "one name a column"),
        ("data.csv", b"text,label\n\xff\xfe,b\n", r"data\.csv"),
        ("data.jsonl", b"{not json}\n", r"data\.jsonl cannot be read as json"),
        ("data.parquet", b"PAR1 but not really", r"data\.parquet cannot be read as parquet"),
        ("data.csv", b"text,label\na,b\nc,d,e\n", r"data\.csv"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_types_that_no_reader_knows_are_refused(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), path)
    schema = pq.read_metadata(path).metadata[b"ARROW:schema"]
    wide = base64.b64encode(base64.b64decode(schema).replace(b"\x40", b"\x80"))  # int64 → int128
    path.write_bytes(path.read_bytes().replace(schema, wide))
    with pytest.raises(DataError, match=r"data\.parquet cannot be read as parquet: .*64 bits"):
        read(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_what_is_packed_is_not_unpacked(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(b'{"text": "a", "label": 0}\n'))
    with pytest.raises(DataError, match=r"begins like gzip.*Unpack it"):
        read(path)
    path.write_bytes(b"PK\x03\x04 and no archive after all")
    with pytest.raises(DataError, match=r"begins like zip.*Unpack it"):
        read(path)


def test_files_that_tell_no_splits_are_listed(write_table):
    write_table("data/one.csv", ROWS)
    path = write_table("data/two.csv", ROWS)
    with pytest.raises(DataError, match=r"one\.csv, two\.csv"):
        read(path.parent)


def test_a_split_in_two_formats_is_refused(write_table):
    write_table("data/train.csv", ROWS)
    path = write_table("data/train.tsv", ROWS, delimiter="\t")
    with pytest.raises(DataError, match=r"several formats"):
        read(path.parent)


def test_a_cache_that_cannot_be_written_is_not_the_tables_fault(write_table, tmp_path, monkeypatch):
    import datasets

    path = write_table("data.csv", ROWS)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"Set HF_DATASETS_CACHE"):
        read(path)
