"""Parts of a checkpoint: each is filled alone, and let go with the next."""

import weakref

import pytest
import torch

from compressor.errors import UsageError
from compressor.settings import MethodSettings, ModelSettings, StreamSettings
from compressor.streaming.checkpoint import open_checkpoint
from compressor.streaming.units import present
from tests import language


def opened(directory, **method):
    return open_checkpoint(
        StreamSettings(
            model=ModelSettings(model=str(directory)),
            method=MethodSettings(budget=("layers=60%",), **method),
            out=directory / "out",
        )
    )


def test_a_unit_is_filled_without_a_copy_of_the_others(tmp_path):
    units = opened(language.save("llama", tmp_path)).units
    dense = language.build("llama").state_dict()
    for unit in units:
        model = units.filled(unit)
        around = {unit.name.rsplit(".", count)[0] for count in range(unit.name.count(".") + 1)}
        for name, _ in model.named_modules():
            assert not name or name in around or name.startswith(f"{unit.name}.")
        found = present(model)
        assert set(found) == set(unit.tensors)
        assert all(torch.equal(tensor, dense[name]) for name, tensor in found.items())


def test_the_unit_before_is_let_go(tmp_path):
    units = opened(language.save("llama", tmp_path)).units
    first, second, *_ = units
    before = weakref.ref(next(units.filled(first).parameters()))
    units.filled(second)
    assert before() is None


def test_a_table_shared_between_parts_is_refused(tmp_path):
    model = language.build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    language.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"embed_tokens and lm_head share one table"):
        opened(tmp_path, include=("embeddings",))
    assert len(opened(tmp_path).units)
