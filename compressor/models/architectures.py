"""What a transformers model predicts, told by the name of its class, and what loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.errors import ModelError
from compressor.forward import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SUFFIXES: dict[str, Task] = {
    "ForSequenceClassification": "classification",
    "ForImageClassification": "classification",
    "ForImageClassificationWithTeacher": "classification",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "seq2seq",
    "ForSeq2SeqLM": "seq2seq",
}
_AUTO: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def task_of(name: str) -> Task | None:
    """Return what a model class of this name predicts, or None where the name does not tell."""
    return next((task for suffix, task in _SUFFIXES.items() if name.endswith(suffix)), None)


def auto_name(name: str) -> str:
    """Return the Auto class that loads a model class of this name, for model cards.

    Args:
        name: For instance ``LlamaForCausalLM``.
    """
    task = task_of(name)
    if task is None or task == "classification":
        kind = "Image" if "ForImageClassification" in name else "Sequence"
        return f"AutoModelFor{kind}Classification"
    return _AUTO[task]


def auto_class(config: PretrainedConfig, reference: str) -> Any:
    """Return the Auto class for the architecture that a config names.

    Raises:
        ModelError: If it is no classifier and no language model.
    """
    import transformers

    names = [name for name in config.architectures or () if isinstance(name, str)]
    for name in names:
        task = task_of(name)
        if task == "seq2seq" and not config.is_encoder_decoder:
            continue  # models that answer about images carry the same suffix
        if task is not None:
            return getattr(transformers, auto_name(name))
    found = ", ".join(names) or "no architecture"
    raise ModelError(
        f"{reference}: its config.json names {found}; expected a sequence or image classifier "
        "(…ForSequenceClassification, …ForImageClassification) or a language model "
        "(…ForCausalLM, …LMHeadModel, …ForMaskedLM, or an encoder-decoder's "
        "…ForConditionalGeneration). A base model has no output to compare: fine-tune it with a "
        "head first."
    )
