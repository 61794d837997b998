import subprocess
import sys
import time

import pytest

from compressor.batch.claims import Claims

HOLD = """
import sys, time
from pathlib import Path
from compressor.batch.claims import Claims
claims = Claims(Path(sys.argv[1]), float(sys.argv[2]))
print(claims.take("job"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a function that has another process take the claim on "job"."""
    started = []

    def hold(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_claim_is_one_processs_at_a_time(tmp_path):
    one, two = Claims(tmp_path), Claims(tmp_path)
    assert one.take("a")
    assert not two.take("a")
    assert two.take("b")
    one.release("a")
    assert two.take("a")
    two.release_all()
    assert one.take("b")
    one.release_all()


def test_releasing_what_is_not_held_is_nothing(tmp_path):
    Claims(tmp_path).release("a")


def test_the_claim_of_a_process_that_was_killed_is_free_at_once(tmp_path, holder):
    process = holder(600)
    claims = Claims(tmp_path, 600)
    assert not claims.take("job")
    process.kill()
    process.wait()
    started = time.monotonic()
    while not claims.take("job"):
        assert time.monotonic() - started < 30
        time.sleep(0.05)
    claims.release_all()


def test_a_claim_that_is_not_renewed_becomes_void_and_its_holder_learns_of_it(tmp_path):
    mine, other = Claims(tmp_path, 1.0), Claims(tmp_path, 1.0)
    assert mine.take("job")
    mine._leases["job"]._stop_heartbeat()  # as where a machine hangs
    deadline = time.monotonic() + 30
    while not other.take("job"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    other.release_all()


def test_a_live_claim_outlasts_its_time(tmp_path, holder):
    holder(1.0)
    claims = Claims(tmp_path, 1.0)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert not claims.take("job")
        time.sleep(0.1)
