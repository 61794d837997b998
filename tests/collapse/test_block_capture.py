"""The pass block by block gathers what the pass over whole models gathers, to the last bit."""

import pytest
import torch

from compressor.collapse.block_capture import capture_blocks
from compressor.collapse.spill import SpilledLayers
from compressor.collapse.token_capture import capture_tokens
from compressor.errors import ModelError
from compressor.gathering import blocks_of
from compressor.layers.search import find_candidates
from compressor.methods.factorize import Decompositions, factorized
from compressor.methods.recipe import Recipe
from compressor.tokens import TokenForward
from tests import language

FORWARD = TokenForward()


def batches(sizes=(2, 1, 2)):
    draw = torch.Generator().manual_seed(0)
    made = []
    for size in sizes:
        ids = torch.randint(6, 23, (size, 10), generator=draw)
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        made.append(({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels))
    return made


def both(model, given=None, **asked):
    given = given or batches()
    candidates = find_candidates(model, given[0][0])
    whole = capture_tokens(model, given, candidates, forward=FORWARD, seed=3, **asked)
    chain = blocks_of(model, FORWARD, given[0][0])
    blocks = capture_blocks(model, given, candidates, forward=FORWARD, chain=chain, seed=3, **asked)
    return candidates, whole, blocks


def assert_alike(a, b):
    for moments in ("inputs", "outputs"):
        for key, value in getattr(a, moments).state().items():
            assert torch.equal(value, getattr(b, moments).state()[key])
    assert torch.equal(a.magnitude, b.magnitude)
    for part in ("fisher", "loss"):
        first, second = getattr(a, part), getattr(b, part)
        assert (first is None) == (second is None)
        for key, value in ({} if first is None else vars(first)).items():
            other = getattr(second, key)
            if value is None:  # a token's Fisher is that of single rows already
                assert other is None
            else:
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other))


@pytest.mark.parametrize("family", [name for name in language.FAMILIES if name != "t5"])
@pytest.mark.parametrize("asked", [{"gradients": True}, {"loss": True}, {}], ids=str)
def test_it_gathers_the_same(family, asked):
    candidates, whole, blocks = both(language.build(family), **asked)
    assert isinstance(blocks.layers, SpilledLayers)
    assert list(blocks.layers) == list(candidates.layers)
    assert torch.equal(whole.labels, blocks.labels)
    for name, found in whole.layers.items():
        assert_alike(found, blocks.layers[name])


def test_rows_are_centred_by_the_same_windows():
    many = batches((40, 40, 40, 2))  # gpt2's layers have biases: their rows are centred
    _, whole, blocks = both(language.build("gpt2"), many, gradients=True)
    for name, found in whole.layers.items():
        assert_alike(found, blocks.layers[name])


def test_decompositions_lie_on_disk_and_factorize_alike():
    model = language.build("gpt2")
    candidates, whole, blocks = both(model, gradients=True)
    recipe, ranks = Recipe(metric="shrunk_fisher"), dict.fromkeys(candidates.layers, 5)
    ids = batches()[0][0]["input_ids"]
    logits = []
    for statistics in (whole, blocks):
        made = Decompositions(model, candidates.layers, statistics.layers)
        small = factorized(model, candidates.layers, ranks, recipe, made)
        with torch.no_grad():
            logits.append(small(input_ids=ids).logits)
    assert torch.equal(*logits)
    kept = len(list(blocks.layers.spill.path.glob("*.safetensors")))
    assert kept == len(candidates.layers) + 2  # one for each block


def test_the_disk_is_given_back():
    _, _, blocks = both(language.build("llama"), gradients=True)
    path = blocks.layers.spill.path
    assert not list(path.glob("hidden-*"))
    del blocks
    assert not path.exists()


def test_only_one_block_is_watched_at_a_time(monkeypatch):
    alive = []
    original = SpilledLayers.add

    def add(self, found):
        alive.append(sorted({name.split(".")[2] for name in found if ".layers." in name}))
        original(self, found)

    monkeypatch.setattr(SpilledLayers, "add", add)
    both(language.build("llama"), gradients=True)
    assert [blocks for blocks in alive if blocks] == [["1"], ["0"]]


def test_an_encoder_decoder_is_refused_with_the_reason():
    ids = batches()[0][0]["input_ids"]
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    model = language.build("t5")
    with pytest.raises(ModelError, match="more than the hidden state reaches them"):
        blocks_of(model, FORWARD, inputs)
