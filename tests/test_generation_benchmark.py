"""The generation benchmark runs both models through both phases."""

import torch

from benchmarks.generation import compare, decode
from tests import language


def test_both_phases_at_every_batch_size():
    model = language.build("llama")
    found = compare(model, model, vocabulary=23, prompt=5, tokens=3, batches=(1, 2), rounds=1)
    assert [(speed.batch, speed.phase) for speed in found] == [
        (1, "prefill"),
        (1, "decode"),
        (2, "prefill"),
        (2, "decode"),
    ]
    assert all(speed.dense > 0 and speed.compressed > 0 for speed in found)


def test_decoding_reads_one_token_at_a_time():
    model = language.build("llama")
    widths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        decode(model, torch.arange(6, 11)[None], 3)
    assert widths == [5, 1, 1, 1]
