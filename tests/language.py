"""Small language models of several families, a tokenizer built on the spot, and text for them."""

from __future__ import annotations

import random
from pathlib import Path

import torch

WORDS = (
    *("the", "a", "cat", "dog", "house", "tree", "river", "sees", "likes"),
    *("finds", "big", "small", "old", "and", "in", "on", "under"),
)
SPECIAL = ["<unk>", "<end>", "<pad>", "<mask>", "<cls>", "<sep>"]


def text(words: int = 6000, seed: int = 0) -> str:
    """Return words in a random order that favours the first ones."""
    draw = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    return " ".join(draw.choices(WORDS, weights, k=words))


def tokenizer(*, masked: bool = False):
    """Return a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>"}
    if masked:
        inner.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>", special_tokens=[("<cls>", 4), ("<sep>", 5)]
        )
        names |= {"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"}
    else:
        names |= {"eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def build(name: str):
    """Return a small model with fixed random weights, in eval mode."""
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": len(SPECIAL) + len(WORDS)}
    ends = {"pad_token_id": 2, "eos_token_id": 1, "bos_token_id": 1}
    llama = {
        **size,
        **ends,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    if name == "gpt2":
        config = transformers.GPT2Config(
            **size, **ends, n_embd=32, n_layer=2, n_head=4, n_positions=128
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if name == "bert":
        config = transformers.BertConfig(
            **size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=2,
        )
        return transformers.BertForMaskedLM(config).eval()
    if name == "t5":
        config = transformers.T5Config(
            **size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            pad_token_id=2, eos_token_id=1, decoder_start_token_id=2,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config).eval()
    kind = {"llama": "Llama", "qwen3": "Qwen3", "mixtral": "Mixtral", "gemma2": "Gemma2"}[name]
    extra = {"num_local_experts": 4} if name == "mixtral" else {}
    config = getattr(transformers, f"{kind}Config")(**llama, **extra)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


FAMILIES = ("gpt2", "llama", "qwen3", "mixtral", "gemma2", "bert", "t5")


def save(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model directory with its tokenizer."""
    build(name).to(dtype).save_pretrained(directory)
    tokenizer(masked=name == "bert").save_pretrained(directory)
    return directory
