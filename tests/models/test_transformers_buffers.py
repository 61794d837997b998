"""Buffers that are in no checkpoint are what transformers' own loading makes them."""

import pytest
import torch

from compressor.errors import ModelError
from compressor.models.transformers_buffers import fill_buffers
from tests import language


def on_meta(model):
    with torch.device("meta"):
        return type(model)(model.config).eval()


@pytest.mark.parametrize("family", [name for name in language.FAMILIES if name != "t5"])
def test_they_are_those_of_a_loaded_model(family, tmp_path):
    saved = language.save(family, tmp_path)
    expected = type(language.build(family)).from_pretrained(saved)
    model = on_meta(expected)
    fill_buffers(model, ())
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    assert all(parameter.is_meta for parameter in model.parameters())


def test_those_on_disk_are_left_alone():
    model = on_meta(language.build("llama"))
    names = [name for name, _ in model.named_buffers()]
    fill_buffers(model, names)
    assert names
    assert all(buffer.is_meta for buffer in model.buffers())


def test_one_that_no_initializer_sets_is_refused():
    model = on_meta(language.build("llama"))
    model.model.norm.register_buffer("made_up", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(ModelError, match=r"makes its buffer model\.norm\.made_up"):
        fill_buffers(model, ())
