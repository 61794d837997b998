"""JSON from strangers: every fault is one error that names the file."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from compressor import jsonfile
from compressor.errors import CheckpointError, ModelError, UsageError
from compressor.jsonfile import read_object, validated


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object, found list"),
        (b"null", "found NoneType"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[" * 200_000, "no JSON that can be read"),
        (b'{"a":' * 200_000, "no JSON that can be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
    ],
)
def test_what_is_no_json_object(content, saying, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=saying) as caught:
        read_object(path, CheckpointError)
    assert str(path) in str(caught.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ModelError, match="it is a directory, expected a file"):
        read_object(tmp_path, ModelError)
    with pytest.raises(ModelError, match="There is no file"):
        read_object(tmp_path / "none.json", ModelError)
    with pytest.raises(ModelError, match="write one"):
        read_object(tmp_path / "none.json", ModelError, missing="write one")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(ModelError, match=r"Cannot read|There is no file"):
        read_object(tmp_path / "loop.json", ModelError)


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfile, "LARGEST", 100)
    path = tmp_path / "config.json"
    path.write_text('{"a": "' + "x" * 200 + '"}')
    with pytest.raises(ModelError, match="larger than 100"):
        read_object(path, ModelError)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n"a": 1\r\n}\r\n')
    assert read_object(path, ModelError) == {"a": 1}


class Schema(BaseModel):
    rank: int


def test_the_key_at_fault_is_named():
    with pytest.raises(UsageError, match=r"plan.json: key rank: "):
        validated(Schema, {"rank": "many"}, "plan.json", UsageError)
    assert validated(Schema, {"rank": 3}, "plan.json", UsageError).rank == 3
