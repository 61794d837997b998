import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.batch.shard import Shard, parse_shard
from compressor.errors import UsageError


@given(st.integers(1, 20), st.integers(0, 60))
def test_the_shards_share_all_jobs_and_none_twice(count, jobs):
    shares = [Shard(index, count).of(range(jobs)) for index in range(count)]
    assert sorted(job for share in shares for job in share) == list(range(jobs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/4", {}, Shard(0, 4)),
        ("3/4", {"JOB_COMPLETION_INDEX": "1"}, Shard(3, 4)),
        ("auto", {"JOB_COMPLETION_INDEX": "5"}, Shard(5, None)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, Shard(3, 4)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "2"}, Shard(2, None)),
        (
            "auto",
            {"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "9"},
            Shard(2, 9),
        ),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7"}, Shard(7, None)),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "9",
                "SLURM_ARRAY_TASK_COUNT": "5",
            },
            Shard(2, 5),
        ),
    ],
)
def test_a_shard_is_read(text, environment, expected):
    assert parse_shard(text, environment) == expected


def test_a_task_whose_array_tells_no_size_does_the_job_of_its_number():
    assert Shard(1, None).of("abc") == ["b"]
    assert Shard(3, None).of("abc") == []


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("4/4", {}, "They count from 0: 0/4 to 3/4"),
        ("0/0", {}, "no shard 0 of 0"),
        ("2", {}, "Expected auto, or i/n"),
        ("a/b", {}, "Expected auto, or i/n"),
        ("auto", {}, "JOB_COMPLETION_INDEX, AWS_BATCH_JOB_ARRAY_INDEX, SLURM_ARRAY_TASK_ID"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "no shard 2 of 2"),
        ("auto", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX, found 'x'"),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "8",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            "not evenly spaced",
        ),
    ],
)
def test_what_is_no_shard_is_refused(text, environment, message):
    with pytest.raises(UsageError, match=message):
        parse_shard(text, environment)
