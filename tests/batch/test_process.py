import pytest

from compressor.batch import process
from compressor.batch.process import cores, environment_of, threads_of


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(process, "_CGROUP", tmp_path / "cpu.max")


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_the_cores_are_divided_between_workers(workers, threads):
    assert threads_of(workers, {}) == threads
    found = environment_of(0, workers, 0, {})
    assert {found[name] for name in process.THREAD_VARIABLES} == {str(threads)}


def test_a_number_of_threads_that_a_person_set_is_kept():
    found = environment_of(0, 2, 0, {"OMP_NUM_THREADS": "3"})
    assert {found[name] for name in process.THREAD_VARIABLES} == {"3"}


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 8)]
)
def test_a_containers_quota_of_cores_counts(quota, expected):
    process._CGROUP.write_text(quota)
    assert cores() == expected


def test_workers_spread_over_the_gpus_that_are_visible():
    def gpus(environment, devices):
        return [
            environment_of(slot, 3, devices, environment).get("CUDA_VISIBLE_DEVICES")
            for slot in range(3)
        ]

    assert gpus({}, 2) == ["0", "1", "0"]
    assert gpus({"CUDA_VISIBLE_DEVICES": "4,7"}, 2) == ["4", "7", "4"]
    assert gpus({}, 1) == [None] * 3
