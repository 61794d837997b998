"""A model whose parts are read while they run: never two of them, and zeros for what is absent."""

from types import SimpleNamespace

import torch

from compressor.layers.lowrank import LowRankLinear
from compressor.progress import SILENT
from compressor.settings import MethodSettings, ModelSettings, StreamSettings
from compressor.streaming.checkpoint import open_checkpoint
from compressor.streaming.measuring import dense_runnable
from compressor.streaming.residency import _zeros_while_absent
from compressor.streaming.runnable import unpadded
from tests import language


def opened(directory):
    return open_checkpoint(
        StreamSettings(
            model=ModelSettings(model=str(directory)),
            method=MethodSettings(budget=("layers=60%",)),
            out=directory / "out",
        )
    )


def present(model):
    return {name for name, parameter in model.named_parameters() if not parameter.is_meta}


def test_one_part_is_in_memory_at_a_time(tmp_path):
    found = dense_runnable(opened(language.save("llama", tmp_path)))
    model, residency = found.model, found.residency
    assert present(model) == set()
    with residency.before():
        assert present(model) == {"model.embed_tokens.weight"}
    for index in range(2):
        with residency.block(index):
            names = present(model)
            assert names
            assert all(name.startswith(f"model.layers.{index}.") for name in names)
    with residency.after():
        assert present(model) == {"model.norm.weight", "lm_head.weight"}
    assert present(model) == set()


def test_a_table_that_the_head_shares_is_read_for_both(tmp_path):
    model = language.build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    language.tokenizer().save_pretrained(tmp_path)
    found = dense_runnable(opened(tmp_path))
    with found.residency.after():
        head, table = found.model.lm_head.weight, found.model.model.embed_tokens.weight
        assert head is table
        assert torch.equal(head, model.lm_head.weight)


def test_the_model_gives_the_hidden_states_of_one_in_memory(tmp_path):
    model = language.build("gpt2")
    found = dense_runnable(opened(language.save("gpt2", tmp_path)))
    ids = torch.randint(6, 23, (3, 12), generator=torch.Generator().manual_seed(0))
    batches = [({"input_ids": ids[:2]}, None), ({"input_ids": ids[2:]}, None)]
    states = found.last_states(batches, tmp_path, progress=SILENT, description="run")
    with torch.no_grad():
        for index, (inputs, _) in enumerate(batches):
            expected = model.transformer(**inputs).last_hidden_state
            torch.testing.assert_close(states.get(index), expected)
    states.drop()
    assert not list(tmp_path.glob("run-*"))


def test_a_factorized_layer_that_is_absent_gives_zeros():
    layer = LowRankLinear(6, 4, 2, device="meta")
    for module in layer.modules():
        _zeros_while_absent(module)
    assert torch.equal(layer(torch.ones(3, 6)), torch.zeros(3, 4))


def test_configs_that_know_of_no_padding_are_left_alone():
    plain, padded = SimpleNamespace(), SimpleNamespace(pad_token_id=2)
    with unpadded(plain), unpadded(padded):
        assert not vars(plain)
        assert padded.pad_token_id is None
    assert not vars(plain)
    assert padded.pad_token_id == 2
