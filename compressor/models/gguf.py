"""GGUF files: language models of llama.cpp, dequantized by transformers when they are read."""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.errors import MissingExtraError, ModelError
from compressor.models.quiet import quiet
from compressor.models.source import LoadedModel, ModelOptions
from compressor.models.transformers import describe_pretrained
from compressor.models.weights import refuse_non_finite, require_weights
from compressor.paths import worded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = ".gguf"


def load_gguf(reference: str, options: ModelOptions) -> LoadedModel:
    """Load and dequantize a GGUF file, or the one that a directory without config.json holds.

    What is loaded is a transformers model like any other and is saved as one: in float32, as a
    GGUF of quantized weights names no type that its factors could be stored in.

    Raises:
        MissingExtraError: If the package gguf is not installed.
        ModelError: If the file is missing, damaged or of an architecture that transformers cannot
            read.
    """
    file = gguf_file(reference, options.checkpoint)
    if file is None:
        raise ModelError(f"{reference} is no GGUF file and no directory that holds one.")
    if find_spec("gguf") is None:
        raise MissingExtraError("Reading GGUF files", "gguf")
    module = _from_pretrained(file)
    refuse_non_finite(module, str(file))
    return describe_pretrained(
        torch.nn.Module.to(module, options.device),
        reference,
        options,
        tokenizer=_tokenizer(file),
        files=(file,),
        notes=(
            f"{file.name} is a GGUF file: its weights were dequantized, and what is saved holds "
            "them in float32. Sizes on disk therefore do not compare.",
        ),
    )


def gguf_file(reference: str, checkpoint: Path | None) -> Path | None:
    """Return the GGUF file that is meant, or None.

    Args:
        reference: The file itself, or a directory without config.json that holds it.
        checkpoint: Weights lying apart; a GGUF file here is taken whatever the reference is.

    Raises:
        ModelError: If a directory holds several.
    """
    if checkpoint is not None:
        return checkpoint if checkpoint.suffix == SUFFIX else None
    path = Path(reference)
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        listed = ", ".join(file.name for file in files[:5])
        raise ModelError(
            f"{reference} holds {len(files)} GGUF files ({listed}). Name the one to take."
        )
    return files[0] if files else None


def _from_pretrained(file: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    require_weights(file)
    try:
        # The bar over the tensors asks nobody whether it is wanted.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            module: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
    except Exception as error:  # the reader meets damage with whatever its parsing runs into
        raise ModelError(
            f"{file}: transformers cannot read this GGUF file: {worded(error)}"
        ) from error
    # From here on the weights are plain floats, and saved as such.
    module.hf_quantizer = None
    module.is_quantized = False
    module.config.quantization_config = None
    del module.config.quantization_config
    loaded: PreTrainedModel = module.eval()
    return loaded


def _tokenizer(file: Path) -> object:
    from transformers import AutoTokenizer

    with quiet():
        tokenizer: object = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return tokenizer
