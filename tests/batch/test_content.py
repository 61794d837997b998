import os

import pytest

from compressor.batch import content
from compressor.batch.content import fingerprint, job_hash
from compressor.settings import CompressSettings


@pytest.fixture(autouse=True)
def _forget():
    fingerprint.cache_clear()


def settings(**values):
    method = {"budget": ("layers=50%",), **values.pop("method", {})}
    return CompressSettings.model_validate(
        {"model": {"model": "a"}, "data": {"data": "b"}, "out": "x", **values, "method": method}
    )


def directory(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_a_job_is_what_its_files_hold_and_not_where_they_lie(tmp_path):
    one = directory(tmp_path / "one", weights="w", config="c")
    two = directory(tmp_path / "else" / "two", weights="w", config="c")
    os.utime(two / "weights", (1, 1))
    assert job_hash(settings(model={"model": str(one)})) == job_hash(
        settings(model={"model": str(two)})
    )


@pytest.mark.parametrize("change", [{"weights": "W"}, {"more": ""}])
def test_another_content_is_another_job(change, tmp_path):
    one = directory(tmp_path / "one", weights="w", config="c")
    two = directory(tmp_path / "two", **{"weights": "w", "config": "c", **change})
    assert fingerprint(str(one)) != fingerprint(str(two))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"method": {"method": "svd"}},
        {"method": {"budget": ("layers=40%",)}},
        {"data": {"data": "b", "limit": 3}},
        {"model": {"model": "c"}},
    ],
)
def test_another_setting_is_another_job(change):
    assert job_hash(settings()) != job_hash(settings(**change))


def test_what_a_batch_chooses_is_no_part_of_a_job():
    chosen = {"out": "y", "overwrite": True, "command": "c", "job": "d", "cache": "e"}
    assert job_hash(settings()) == job_hash(settings(**chosen))


def test_a_factory_is_its_file_and_its_name(tmp_path):
    (tmp_path / "net.py").write_text("1")
    (tmp_path / "copy.py").write_text("1")
    net, other = (f"{tmp_path / name}.py" for name in ("net", "copy"))
    assert fingerprint(f"{net}:build") == fingerprint(f"{other}:build")
    assert fingerprint(f"{net}:build") != fingerprint(f"{net}:make")


def test_a_name_stands_for_itself():
    assert fingerprint("owner/model") == "owner/model"


def test_of_a_large_directory_sizes_and_times_have_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "LARGEST_READ", 0)
    path = directory(tmp_path / "one", a="1")
    os.utime(path / "a", ns=(5, 5))
    before = fingerprint(str(path))
    fingerprint.cache_clear()
    (path / "a").write_text("2")
    os.utime(path / "a", ns=(6, 6))
    assert fingerprint(str(path)) != before
