"""GGUF files: written here with the gguf package, quantized, and read as transformers models."""

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.models import load_model
from compressor.models.gguf import gguf_file
from compressor.settings import ModelSettings
from tests import language

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def write(model, path):
    """Write a small Llama; q and k rows are permuted as llama.cpp has them."""
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*language.SPECIAL, "t", "h", "th", *map(str, range(14))])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    for key, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if part in key:
                shape = values.shape
                values = values.reshape(heads, 2, shape[0] // heads // 2, shape[1])
                values = values.swapaxes(1, 2).reshape(shape)
        name = key
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(language.build("llama"), path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["file", "directory", "checkpoint"])
def test_the_model_in_a_gguf_file_is_read(file, how):
    settings = {
        "file": ModelSettings(model=str(file)),
        "directory": ModelSettings(model=str(file.parent)),
        "checkpoint": ModelSettings(model="llama", checkpoint=file),
    }[how]
    loaded = load_model(settings)
    assert loaded.task == "causal"
    assert loaded.bytes_on_disk == file.stat().st_size
    assert any("dequantized" in note for note in loaded.notes)
    ids = torch.arange(6, 18).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.module(input_ids=ids).logits, language.build("llama")(input_ids=ids).logits
        )


def test_a_damaged_or_missing_file_is_an_error(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load_model(ModelSettings(model=str(broken)))
    with pytest.raises(ModelError, match=r"No weight file at .* it does not exist"):
        load_model(ModelSettings(model="llama", checkpoint=tmp_path / "none.gguf"))


def test_a_directory_of_several_asks_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"a\.gguf, b\.gguf"):
        gguf_file(str(tmp_path), None)


def test_a_directory_with_a_config_is_no_gguf_directory(tmp_path):
    (tmp_path / "a.gguf").touch()
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path), None) is None
