import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.distributed import Group
from compressor.methods.pair_sums import PairSums


class Processes(Group):
    """Processes played by threads, which wait for each other at every sum."""

    def __init__(self, size):
        super().__init__(0, size)
        self.__dict__["barrier"] = threading.Barrier(size)
        self.__dict__["given"] = {}

    def sum_(self, tensor):
        self.given[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        total = sum(self.given[key] for key in sorted(self.given))
        self.barrier.wait()
        tensor.copy_(total)


def joined(*parts):
    """Return what each process's sums become."""
    processes = Processes(len(parts))
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda sums: sums.joined(processes), parts))


def drawn(seed, rows, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=draw, dtype=torch.float64) + 100 * seed
    y = torch.randn(rows, 3, generator=draw, dtype=torch.float64) - 50
    return x, y, scale * torch.rand(rows, generator=draw, dtype=torch.float64)


def sums_of(parts, centred=True):
    sums = PairSums.empty(5, 3, torch.device("cpu"))
    for part in parts:
        sums.add(*part, centred=centred)
    return sums


def about(sums, o, p):
    """Return weight, sums, gram and cross in units of 1, moved to the origins o and p."""
    weight = sums.weight * sums.unit
    (s, t), gram, cross = (
        [part * sums.unit for part in sums.sums],
        sums.gram.matrix * sums.unit,
        sums.cross * sums.unit,
    )
    d, e = sums.origins[0] - o, sums.origins[1] - p
    gram = gram + torch.outer(s, d) + torch.outer(d, s) + weight * torch.outer(d, d)
    cross = cross + torch.outer(t, d) + torch.outer(e, s) + weight * torch.outer(e, d)
    return torch.tensor(weight, dtype=torch.float64), s + weight * d, t + weight * e, gram, cross


def oracle(parts, o, p):
    x, y, w = (torch.cat(kind) for kind in zip(*parts, strict=True))
    x, y = x - o, y - p
    return w.sum(), w @ x, w @ y, (x * w[:, None]).T @ x, (y * w[:, None]).T @ x


@given(
    seed=st.integers(0, 999),
    first=st.integers(1, 9),
    second=st.integers(1, 9),
    scale=st.sampled_from([1e-9, 1, 1e6]),
)
@settings(max_examples=30, deadline=None)
def test_joined_sums_are_those_of_all_rows(seed, first, second, scale):
    one, two = drawn(seed % 5, first), drawn(seed % 7, second, scale)
    found, same = joined(sums_of([one]), sums_of([two]))
    assert torch.equal(found.gram.matrix, same.gram.matrix)
    o, p = found.origins
    for got, wanted in zip(about(found, o, p), oracle([one, two], o, p), strict=True):
        # Rows of the scale round to 1e-16 of it, whatever their sums come to.
        size = 1 + float(wanted.abs().max())
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * size + 1e-14 * scale)


def test_a_process_without_rows_changes_nothing():
    one = drawn(3, 6)
    found, _ = joined(sums_of([]), sums_of([one]))
    for got, wanted in zip(
        about(found, *found.origins), oracle([one], *found.origins), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-7)


def test_batches_add_up_about_the_first_ones_means():
    parts = [drawn(2, 4), drawn(2, 5)]
    sums = sums_of(parts)
    torch.testing.assert_close(sums.origins[0], parts[0][2] @ parts[0][0] / parts[0][2].sum())
    for got, wanted in zip(about(sums, *sums.origins), oracle(parts, *sums.origins), strict=True):
        torch.testing.assert_close(got, wanted)
    plain = sums_of(parts, centred=False)
    assert not plain.origins[0].any()
