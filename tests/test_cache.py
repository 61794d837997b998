"""Entries come back exactly, and one that is damaged, foreign or half written never does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from compressor.cache import Cache

KEY = {"model": "abc", "code": "1", "data": ["x"]}


def never():
    raise AssertionError("it was there and need not be made")


def values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(5, 7, generator=generator, dtype=torch.float64),
        "labels": torch.arange(4),
        "number": torch.tensor(0.1, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "half": torch.randn(3, generator=generator).bfloat16(),
    }


def entry(directory, suffix):
    (file,) = directory.glob(f"*{suffix}")
    return file


def test_tensors_come_back_to_the_last_bit(tmp_path):
    made = Cache(tmp_path, KEY).tensors("thing", {"seed": 0}, values)
    again = Cache(tmp_path, KEY).tensors("thing", {"seed": 0}, never)
    assert made.keys() == again.keys() == values().keys()
    for name, tensor in values().items():
        assert torch.equal(made[name], tensor)
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype


def test_what_is_made_is_laid_out_as_what_is_read(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    cache = Cache(tmp_path, KEY)
    made = cache.tensors("thing", {}, lambda: {"turned": matrix.T, "row": matrix[1]})
    again = cache.tensors("thing", {}, never)
    for name, tensor in made.items():
        assert tensor.stride() == again[name].stride()
        assert torch.equal(tensor, again[name])


@settings(max_examples=30, deadline=None)
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_records_keep_floats_exactly(tmp_path_factory, number):
    cache = Cache(tmp_path_factory.mktemp("cache"), KEY)
    value = {"kl": number, "names": ["a", None, True]}
    assert cache.record("thing", {}, lambda: value) == value
    assert cache.record("thing", {}, never) == value


@pytest.mark.parametrize(
    ("name", "of"), [("other", {"seed": 0}), ("thing", {"seed": 1}), ("thing", {})]
)
def test_another_key_is_another_entry(tmp_path, name, of):
    cache = Cache(tmp_path, KEY)
    cache.record("thing", {"seed": 0}, lambda: 1)
    assert cache.record(name, of, lambda: 2) == 2
    assert cache.record("thing", {"seed": 0}, never) == 1


def test_a_narrower_cache_has_its_own_entries(tmp_path):
    cache = Cache(tmp_path, KEY)
    narrow = cache.under({"pass": "forward"})
    assert narrow.record("thing", {}, lambda: 1) == 1
    assert cache.record("thing", {}, lambda: 2) == 2
    assert cache.record("thing", {"pass": "forward"}, never) == 1


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def empty(file):
    file.write_bytes(b"")


def scramble(file):
    file.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("damage", [flip_a_byte, cut, empty, scramble])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_damaged_entry_is_noticed_and_made_again(tmp_path, damage, suffix):
    notes = []
    cache = Cache(tmp_path, KEY, note=notes.append)

    def ask(make):
        if suffix == ".json":
            return cache.record("thing", {}, make)
        return cache.tensors("thing", {}, make)

    first = ask((lambda: [1.5, 2.5]) if suffix == ".json" else values)
    file = entry(tmp_path, suffix)
    damage(file)
    again = ask((lambda: [1.5, 2.5]) if suffix == ".json" else values)
    assert len(notes) == 1
    assert str(file) in notes[0]
    assert "damaged" in notes[0]
    if suffix == ".json":
        assert again == first
    else:
        assert torch.equal(again["matrix"], first["matrix"])
    ask(never)
    assert len(notes) == 1


def test_an_entry_under_the_name_of_another_is_not_taken(tmp_path):
    cache = Cache(tmp_path, KEY)
    cache.record("thing", {"seed": 0}, lambda: 1)
    first = entry(tmp_path, ".json")
    cache.record("thing", {"seed": 1}, lambda: 2)
    (second,) = set(tmp_path.glob("*.json")) - {first}
    second.write_bytes(first.read_bytes())
    notes = []
    assert Cache(tmp_path, KEY, note=notes.append).record("thing", {"seed": 1}, lambda: 3) == 3
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("changed", "own", "told"),
    [
        ({"code": "2"}, False, True),
        ({"data": ["y"]}, False, False),
        ({"data": ["y"]}, True, True),
        ({}, True, False),
    ],
)
def test_a_stale_entry_is_told_of_where_it_matters(tmp_path, changed, own, told):
    Cache(tmp_path, KEY).tensors("thing", {}, values)
    notes = []
    cache = Cache(tmp_path, {**KEY, **changed}, note=notes.append, own=own)
    cache.tensors("thing", {}, values)
    cache.tensors("thing", {}, never)
    assert len(notes) == int(told)
    for part in changed if told else ():
        assert part in notes[0]


def test_a_disk_that_cannot_be_written_costs_the_entry_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    notes = []
    cache = Cache(file / "cache", KEY, note=notes.append)
    assert cache.record("thing", {}, lambda: 1) == 1
    assert torch.equal(cache.tensors("thing", {}, values)["labels"], torch.arange(4))
    assert len(notes) == 1
    assert str(file) in notes[0]


def test_an_error_while_making_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, KEY)

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.tensors("thing", {}, fail)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    assert cache.record("thing", {}, lambda: 1) == 1


WORKER = """
import sys, time
from pathlib import Path
from compressor.cache import Cache
directory, tally = map(Path, sys.argv[1:3])
def make():
    with tally.open("a") as file:
        file.write("x")
    time.sleep(float(sys.argv[3]))
    return 7
print(Cache(directory, {}).record("thing", {}, make))
"""


def start(tmp_path, seconds):
    words = [sys.executable, "-c", WORKER, str(tmp_path / "cache"), str(tmp_path / "tally")]
    return subprocess.Popen([*words, str(seconds)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_several_processes_one_makes_an_entry(tmp_path):
    workers = [start(tmp_path, 0.3) for _ in range(3)]
    assert [worker.communicate()[0].strip() for worker in workers] == ["7"] * 3
    assert (tmp_path / "tally").read_text() == "x"


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    worker = start(tmp_path, 600)
    while not (tmp_path / "tally").exists():
        assert worker.poll() is None
        time.sleep(0.05)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert Cache(tmp_path / "cache", {}).record("thing", {}, lambda: 8) == 8


def test_files_are_safetensors_and_json_with_their_key(tmp_path):
    cache = Cache(tmp_path, KEY)
    cache.tensors("thing", {"seed": 3}, values)
    cache.record("thing", {"seed": 3}, lambda: 1)
    with safe_open(entry(tmp_path, ".safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["key"]) == {**KEY, "seed": 3}
    assert json.loads(json.loads(entry(tmp_path, ".json").read_text())["key"])["seed"] == 3
