"""Calling models that predict tokens."""

import pytest
import torch

from compressor.tokens import TokenForward, backbone, uncached
from tests import language


def test_keys_and_values_are_not_kept_meanwhile():
    model = language.build("llama")
    with uncached(model):
        assert not model.config.use_cache
    assert model.config.use_cache


@pytest.mark.parametrize("family", [name for name in language.FAMILIES if name != "bert"])
def test_windows_leave_no_keys_and_values_and_states_are_the_same(family):
    model, seen = language.build(family).eval(), []
    ids = torch.randint(6, 23, (2, 10), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    if family == "t5":
        inputs["decoder_input_ids"] = ids
    part = backbone(model)
    handle = part.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        hidden = TokenForward()(model, inputs)
        model(**inputs, use_cache=True)
    handle.remove()
    without, with_them = seen
    assert without.past_key_values is None
    assert with_them.past_key_values is not None
    assert torch.equal(hidden, with_them.last_hidden_state)
