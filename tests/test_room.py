"""Memory that runs out halves the batch, and the result is that of the smaller batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import compressor.forward
from compressor.data.batches import Padding, TextSplit
from compressor.errors import CompressorError
from compressor.evaluation.loop import evaluate
from compressor.forward import Forward, Parts, batch_length, fitted, largest_batch
from compressor.methods import measurement
from compressor.methods.measurement import hold_out
from compressor.methods.refit import refitted
from compressor.pipeline import compress_model
from compressor.progress import SILENT, Silent
from compressor.room import Room, is_out_of_memory
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from compressor.speed import speed_figures
from compressor.stages import factorize, measure, plan, subject_of
from tests.methods.measured import batches, trained


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class Meter(torch.autograd.Function):
    """Lets pass what comes and goes, but for gradients of more samples than fit."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > ctx.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return gradient, None


class Tight(nn.Module):
    """A model on a device that holds so many samples forwards, and so many backwards."""

    def __init__(self, forwards=10**9, backwards=10**9):
        super().__init__()
        self.net, self.forwards, self.backwards = trained(), forwards, backwards

    def forward(self, x):
        if len(x) > self.forwards:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Meter.apply(self.net(x), self.backwards)


def compressed(model, size, told=SILENT):
    calibration, selection = hold_out(batches(8))
    calibration, selection = fitted(calibration, size), fitted(selection, size)
    found = measure(model, calibration, selection=selection, progress=told)
    made = plan(found, "layers=40%", progress=told)
    return made, factorize(model, made, progress=told)


@pytest.fixture
def all_samples(monkeypatch):
    """Refit to whole batches: those that matter may be so few that they fit doubled."""
    monkeypatch.setattr(measurement, "refitted", partial(refitted, left_out=0.0))


@pytest.mark.usefixtures("all_samples")
@pytest.mark.parametrize(
    ("limits", "stays"),
    [
        ({"backwards": 4}, 4),  # in the measuring pass, whose forward has fed its sums by then
        ({"forwards": 8}, 4),  # in measuring, and again in the refit, whose batches are doubled
        ({"forwards": 16}, 8),  # in the refit alone, long after the measuring pass
    ],
)
def test_the_result_is_that_of_the_smaller_batch(limits, stays):
    told = Told()
    made, small = compressed(Tight(**limits), 16, told)
    wanted, expected = compressed(Tight(), stays)
    assert made.measurement.forward.room.most == stays
    assert any(choice.made_from for choice in made.selection)  # the refit was run
    assert made.model_dump() == wanted.model_dump()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor), name
    halvings = [note for note in told.notes if "Memory ran out" in note]
    assert len(halvings) == len(set(halvings)) == {4: 2, 8: 1}[stays]


@pytest.mark.usefixtures("all_samples")
def test_a_plan_that_had_to_measure_again_is_not_made_to_a_second_time():
    model = Tight(forwards=16)
    calibration, selection = hold_out(batches(8))
    found = measure(model, calibration, selection=selection)
    told = Told()
    first = plan(found, "layers=40%", progress=told)
    second = plan(found, "layers=50%", progress=told)
    assert first.measurement is second.measurement is not found
    assert len(told.notes) == 1


def test_one_sample_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        measure(Tight(forwards=0), batches(4))
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Tight(forwards=0), batches(2))


def test_other_errors_are_not_tried_again():
    calls = []

    def work(most):
        calls.append(most)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Room().run(work, 16, SILENT)
    assert calls == [None]


def test_an_evaluation_takes_parts_and_keeps_the_order():
    told, forward = Told(), Forward()
    whole = evaluate(Tight(), batches(4))
    found = evaluate(Tight(forwards=5), batches(4), forward=forward, progress=told)
    again = evaluate(Tight(forwards=5), batches(4), forward=forward, progress=told)
    torch.testing.assert_close(found.logits, whole.logits)
    assert found.accuracy == again.accuracy == whole.accuracy
    assert forward.room.part == 4
    assert forward.room.most is None  # nothing is measured again for that
    assert [note.split(":")[0] for note in told.notes] == [
        "Memory ran out on 16 samples at once",
        "Memory ran out on 8 samples at once",
    ]


def test_a_batch_too_large_to_time_is_left_out():
    model = Tight(forwards=16)
    calibration, selection = hold_out(batches(8))
    found = measure(model, calibration, selection=selection, gradients=False)
    small = factorize(model, plan(found, "layers=40%"))
    speed = speed_figures(subject_of(found), small)
    assert [timed.batch for timed in speed.batches] == [1]
    assert any("memory ran out" in note for note in speed.notes)


def test_splits_batch_anew_and_lists_are_cut():
    encodings = [{"input_ids": torch.arange(length).numpy()} for length in (5, 2, 9, 4, 7, 3)]
    split = TextSplit(encodings, torch.arange(6), Padding({"input_ids": 0}), "", 4)
    smaller = fitted(split, 2)
    assert smaller == TextSplit(encodings, split.targets, split.padding, "", 2)
    assert [batch_length(inputs) for inputs, _ in smaller] == [2, 2, 2]
    assert fitted(split, None) is fitted(split, 4) is split
    listed = [((torch.arange(5), torch.arange(5)), None), ({"x": torch.arange(3)}, None)]
    cut = fitted(listed, 2)
    assert isinstance(cut, Parts)
    assert [batch_length(inputs) for inputs, _ in cut] == [2, 2, 1, 2, 1]
    assert [largest_batch(given) for given in (split, listed, cut, [])] == [4, 5, 2, 0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_device_is_understood(error):
    assert is_out_of_memory(error)


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(CompressorError("out of memory"))


def test_a_whole_run_is_that_of_the_smaller_batch_size(trained_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("compressor.pipeline.result.report_page", lambda report: "")

    def run(name, batch_size, told=SILENT):
        settings = CompressSettings(
            model=ModelSettings(model=trained_bert.model[0], device="cpu"),
            data=DataSettings(
                data=trained_bert.data[1], calibration=60, limit=60, batch_size=batch_size
            ),
            method=MethodSettings(budget=("layers=40%",)),
            out=tmp_path / name,
            resume=True,
        )
        report = compress_model(settings, progress=told)
        return report, [
            (settings.out / file).read_bytes() for file in ("model.safetensors", "plan.json")
        ]

    expected = run("small-batch", 4)[1]
    real = compressor.forward.call

    def tight(model, inputs):
        if batch_length(inputs) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")
        return real(model, inputs)

    monkeypatch.setattr("compressor.forward.call", tight)
    told = Told()
    report, found = run("halved", 16, told)
    assert found == expected
    assert sum("Memory ran out" in note for note in told.notes) == 2
    assert any("--batch-size 4" in note for note in report.notes)
