"""Packing documents into windows of tokens of one length, with the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.corpus import Conversation, Documents
from compressor.errors import DataError

Tokens = NDArray[np.int32]

_PIECE = 200_000
"""Characters that are tokenized at a time; a piece ends where a line does."""


class Packer:
    """Cuts documents, joined end to end, into windows.

    Every window begins and ends with the special tokens that the tokenizer puts around a text
    (``[CLS]`` and ``[SEP]``, or ``<bos>``). Documents are kept apart by the end-of-text token
    where the tokenizer has one.

    Args:
        tokenizer: A transformers tokenizer.
        length: Tokens of each window, special tokens included.
        where: What the model is called in messages.

    Raises:
        DataError: If the length leaves no room for two tokens of text.
    """

    def __init__(self, tokenizer: Any, length: int, *, where: str) -> None:
        self._tokenizer, self._where = tokenizer, where
        self.prefix, self.suffix = _around(tokenizer)
        self._body = length - len(self.prefix) - len(self.suffix)
        if self._body < 2:
            raise DataError(
                f"--max-length {length} leaves no room for text: the tokenizer adds "
                f"{len(self.prefix) + len(self.suffix)} special tokens. Give more."
            )
        end = tokenizer.eos_token_id
        self._between = [] if end is None or self.suffix else [end]

    def windows(self, documents: Documents, most: int) -> Tokens:
        """Return the first ``most`` windows [N, length]; what is left of the text is dropped."""
        made: list[list[int]] = []
        held: list[int] = []
        for document in documents:
            for ids in self._tokens(document):
                held += ids
                while len(held) >= self._body:
                    made.append([*self.prefix, *held[: self._body], *self.suffix])
                    held = held[self._body :]
                    if len(made) == most:
                        return np.array(made, np.int32)
            held += self._between
        if not made:
            raise DataError(
                f"{documents.where} holds less text than one window of {self._body} tokens. Give "
                "more text, or a smaller --max-length."
            )
        return np.array(made, np.int32)

    def _tokens(self, document: str | Conversation) -> Iterator[list[int]]:
        text = document if isinstance(document, str) else self._rendered(document)
        for piece in _pieces(text):
            ids: list[int] = self._tokenizer(piece, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            yield ids

    def _rendered(self, conversation: Conversation) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(
                f"The data has messages, but the tokenizer of {self._where} has no chat template. "
                "Name a column of text with --text-column, or add chat_template.jinja."
            )
        text: str = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        return text


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces, as tokenizers slow down on very long ones."""
    start = 0
    while start < len(text):
        stop = start + _PIECE
        if stop < len(text):
            line = text.rfind("\n", start + 1, stop)
            stop = line if line > start else stop
        yield text[start:stop]
        start = stop
