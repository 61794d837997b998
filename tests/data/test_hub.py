import pytest

from compressor.data.hub import HubSource
from compressor.errors import DataError
from compressor.settings import DataSettings


@pytest.mark.parametrize("reference", ["imdb", "stanfordnlp/sst2", "nyu-mll/glue:sst2"])
def test_ids_are_recognised(reference):
    assert HubSource().recognises(reference)


@pytest.mark.parametrize(
    "reference", ["/a/b", "./a", "a/b/c", "data.csv", "dir/x.parquet", "", "~"]
)
def test_paths_are_not(reference):
    assert not HubSource().recognises(reference)


def test_what_lies_on_disk_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    assert not HubSource().recognises("imdb")


def test_offline_is_said():
    with pytest.raises(DataError, match=r"no/such: .*offline") as caught:
        HubSource().read("no/such", DataSettings(data="no/such"))
    assert "download the data set first" in str(caught.value)
