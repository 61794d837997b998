"""Processes that torchrun starts come to what one process comes to, and fail together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from compressor.collapse.moments import ClassMoments
from compressor.distributed import ALONE, Group, shares, started
from compressor.errors import UsageError

WORKER = """
import json, sys
from pathlib import Path
import torch
from compressor.cache import Cache
from compressor.distributed import started
from compressor.errors import CompressorError
from compressor.evaluation.loop import evaluate
from compressor.forward import Forward
from compressor.methods import aside
from compressor.methods.factorize import factorized
from compressor.methods.measurement import hold_out
from compressor.methods.refit import refitted
from compressor.stages import factorize, measure, plan
from tests.methods.measured import batches, trained

root, fails = Path(sys.argv[1]), sys.argv[2] == "fail"
with started(shared=True) as group:
    if fails and group.rank == 1:
        sys.exit("rank 1 has an accident")
    forward = Forward(group=group)
    kept, held = hold_out(batches(9))
    cache = Cache(root / "cache", {"run": 0}, group=group)
    try:
        found = measure(trained(), kept, selection=held, forward=forward, cache=cache)
        again = measure(trained(), kept, selection=held, forward=forward, cache=cache)
    except CompressorError as error:
        sys.exit(f"rank {group.rank}: {error}")
    made = plan(found, "layers=40%")
    small = factorize(trained(), made)
    after = evaluate(small, held, forward=forward)
    layers = found.statistics.layers
    plain = factorized(
        found.model, found.candidates.layers, made.ranks, made.recipe, found.decompositions
    )
    # One batch at a time, so that in turn each process has none of its own to run; and sums of any
    # size lie on disk between them.
    aside.SMALL = 0
    fitted = refitted(
        found.model, plain, found.candidates.layers, kept, found.batch_energies,
        forward=forward, activations=1,
    )
    assert not torch.equal(fitted.a.down.weight, plain.a.down.weight)
    assert all(
        torch.equal(layers[n].fisher.near, again.statistics.layers[n].fisher.near) for n in layers
    )
    told = {
        "plan": made.model_dump(mode="json"),
        "logits": after.logits.tolist(),
        "refit": {name: tensor.tolist() for name, tensor in fitted.state_dict().items()},
        "dense": found.statistics.logits.tolist(),
        "pooled": {name: rows.tolist() for name, rows in found.statistics.pooled.items()},
        "within": {name: s.inputs.within_covariance.tolist() for name, s in layers.items()},
        "spectra": {
            name: found.decompositions.get(name, made.recipe).decomposition.energies.tolist()
            for name in layers
        },
    }
    (root / f"{group.size}-{group.rank}.json").write_text(json.dumps(told))
"""


def launch(root: Path, processes: int, *words: str) -> subprocess.CompletedProcess:
    """Run the worker above in so many processes."""
    script = root / "worker.py"
    script.write_text(WORKER)
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(processes)]
    here = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, str(script), str(root), *words],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        timeout=900,
    )


def near(first, second):
    """Check that two tensors agree to 1e-10 of the largest entry."""
    first, second = (torch.tensor(part, dtype=torch.float64) for part in (first, second))
    assert float((first - second).abs().max()) <= 1e-10 * float(second.abs().max())


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for root, processes in ((alone, 1), (together, 2)):
        root.mkdir()
        done = launch(root, processes, "go")
        assert done.returncode == 0, done.stderr
    one = json.loads((alone / "1-0.json").read_text())
    first = json.loads((together / "2-0.json").read_text())
    second = json.loads((together / "2-1.json").read_text())
    assert first == second  # to the last bit: the processes decide alike
    for name, layer in one["plan"]["layers"].items():
        assert first["plan"]["layers"][name]["rank"] == layer["rank"]
    assert first["plan"]["recipe"] == one["plan"]["recipe"]
    for name in one["spectra"]:
        near(first["spectra"][name], one["spectra"][name])
        near(first["within"][name], one["within"][name])
    for name, tensor in one["refit"].items():
        torch.testing.assert_close(
            torch.tensor(first["refit"][name]), torch.tensor(tensor), rtol=1e-4, atol=1e-5
        )
    tried = [[choice["kl"] for choice in run["plan"]["selection"]] for run in (first, one)]
    assert tried[0] == pytest.approx(tried[1], rel=1e-4)
    assert first["dense"] == one["dense"]
    assert first["pooled"] == one["pooled"]
    torch.testing.assert_close(torch.tensor(first["logits"]), torch.tensor(one["logits"]))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_a_message(tmp_path):
    done = launch(tmp_path, 2, "fail")
    assert done.returncode != 0
    assert "rank 1 has an accident" in done.stderr
    assert not list(tmp_path.glob("*.json"))


@given(st.integers(0, 999), st.integers(1, 4), st.lists(st.integers(0, 6), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_moments_join_as_they_merge(seed, classes, sizes):
    generator = torch.Generator().manual_seed(seed)
    parts = [ClassMoments(classes, 3) for _ in sizes]
    merged = ClassMoments(classes, 3)
    for part, size in zip(parts, sizes, strict=True):
        rows = torch.randn(size, 3, generator=generator, dtype=torch.float64) + 5
        part.update(rows, torch.randint(0, classes, (size,), generator=generator))
        merged = merged.merge(part)
    joined_together(parts)
    for part in parts:
        for name, tensor in merged.state().items():
            torch.testing.assert_close(part.state()[name], tensor, rtol=1e-9, atol=1e-9)


def joined_together(parts):
    """Have every part call `join_` in a thread of its own, with a sum over all of them."""
    barrier = threading.Barrier(len(parts))
    given_tensors = [None] * len(parts)

    def join(index):
        def sum_(tensor):
            given_tensors[index] = tensor.clone()
            barrier.wait()
            total = sum(given_tensors)
            barrier.wait()
            tensor.copy_(total)

        parts[index].join_(sum_)

    threads = [threading.Thread(target=join, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("sizes", [[3], [3, 2], [1, 2, 3]])
def test_every_process_gets_the_rows_of_all_batches(monkeypatch, sizes):
    # Of a single batch the first process knows every row, and the other none.
    batches = [torch.randn(size, 4) for size in sizes]
    barrier, given_tensors, found = threading.Barrier(2, timeout=30), {}, {}

    def all_reduce(tensor, op=distributed.ReduceOp.SUM):
        given_tensors[threading.current_thread()] = tensor.clone()
        barrier.wait()
        parts = torch.stack(list(given_tensors.values()))
        barrier.wait()
        tensor.copy_(parts.sum(0) if op == distributed.ReduceOp.SUM else parts.max(0).values)

    def run(group):
        own = [batch if group.takes(i) else len(batch) for i, batch in enumerate(batches)]
        found[group.rank] = group.rows(own)

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    threads = [threading.Thread(target=run, args=(Group(rank, 2),)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        assert torch.equal(found[rank], torch.cat(batches))


def test_work_is_dealt_evenly():
    owners = shares([5, 1, 1, 1, 1, 1], 2)
    assert owners[0] != owners[1]
    assert sum(cost for cost, owner in zip([5, 1, 1, 1, 1, 1], owners, strict=True) if owner) == 5
    assert shares([], 3) == []


def test_every_batch_is_taken_once():
    for index in range(7):
        assert sum(Group(rank, 3).takes(index) for rank in range(3)) == 1


def test_one_process_alone_changes_nothing():
    rows = torch.randn(2, 3)
    assert torch.equal(ALONE.rows([rows, rows]), torch.cat([rows, rows]))
    assert ALONE.told({"a": 1}) == {"a": 1}
    assert ALONE.largest(3) == 3
    assert ALONE.leads


def test_a_command_that_is_not_shared_says_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="without torchrun"), started(shared=False):
        pass
