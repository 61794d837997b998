"""Reading texts with a model's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.batches import Padding, TextSplit
from compressor.data.hashing import content_digest, split_hash
from compressor.data.reading import Drawn, ReadSplit, note_skipped
from compressor.errors import DataError
from compressor.models.source import LoadedModel
from compressor.progress import Progress

DEFAULT_BATCH_SIZE = 32
_CHUNK = 1_000
_UNLIMITED = 1_000_000  # tokenizers without a limit say int(1e30)


class TextReader:
    """Tokenizes texts for one model.

    Args:
        model: A model with a transformers tokenizer.
        max_length: Longest sequence in tokens, special tokens included; None takes the longest
            that tokenizer and model allow.
        batch_size: Texts a batch; None takes 32.
        strict: Refuse rows without text instead of skipping them.

    Raises:
        DataError: If the model has no tokenizer, cannot take ``max_length`` tokens, or cannot pad.
    """

    def __init__(
        self, model: LoadedModel, *, max_length: int | None, batch_size: int | None, strict: bool
    ) -> None:
        if model.tokenizer is None:
            raise DataError(
                f"{model.reference} has no tokenizer; texts need one. Put tokenizer.json beside "
                f"the model's config.json."
            )
        self._tokenizer: Any = model.tokenizer
        self._max_length = _max_length(self._tokenizer, model, max_length)
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE
        self._padding = _padding(self._tokenizer, model, self.batch_size)
        self._strict = strict

    def read(self, drawn: Drawn, *, progress: Progress) -> ReadSplit:
        """Tokenize the drawn texts, cut to the longest length allowed."""
        indices: list[int] = []
        digests: list[bytes] = []
        encodings: list[Mapping[str, NDArray[np.int64]]] = []
        problems: dict[int, str] = {}
        chunks = range(0, len(drawn.draw.indices), _CHUNK)
        for start in progress.track(
            chunks, description=f"tokenize {drawn.name}", total=len(chunks)
        ):
            rows = [int(index) for index in drawn.draw.indices[start : start + _CHUNK]]
            found = {row: drawn.raw.samples[row] for row in rows}
            texts = {row: text for row, text in found.items() if isinstance(text, str)}
            problems |= {row: "holds no text" for row in rows if row not in texts}
            for (row, text), encoding in zip(
                texts.items(), self._encoded(list(texts.values())), strict=True
            ):
                if len(encoding["input_ids"]) == 0:
                    problems[row] = "has no tokens"
                    continue
                indices.append(row)
                digests.append(content_digest(text))
                encodings.append(encoding)
        notes = note_skipped(drawn, problems, strict=self._strict)
        split = TextSplit(
            encodings=encodings,
            targets=drawn.targets(indices),
            padding=self._padding,
            sha256=split_hash(digests, drawn.raw_labels(indices)),
            batch_size=self.batch_size,
            mixed=drawn.draw.mixed,
        )
        return ReadSplit(split, frozenset(digests), notes)

    def _encoded(self, texts: list[str]) -> list[dict[str, NDArray[np.int64]]]:
        if not texts:
            return []
        limits = {} if self._max_length is None else {"max_length": self._max_length}
        encoded = self._tokenizer(
            texts, truncation=bool(limits), padding=False, return_attention_mask=False, **limits
        )
        return [
            {name: np.asarray(encoded[name][row], np.int32) for name in self._padding.values}
            for row in range(len(texts))
        ]


def _max_length(tokenizer: Any, model: LoadedModel, asked: int | None) -> int | None:
    config = getattr(model.module, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if asked is not None:
        if isinstance(positions, int) and asked > positions:
            raise DataError(
                f"--max-length {asked} is more than the {positions} positions that "
                f"{model.reference} has. Give at most {positions}."
            )
        special = tokenizer.num_special_tokens_to_add()
        if asked <= special:
            raise DataError(
                f"--max-length {asked} leaves no room for text: the tokenizer adds {special} "
                f"special tokens. Give more."
            )
        return asked
    limits = [
        limit
        for limit in (getattr(tokenizer, "model_max_length", None), positions)
        if isinstance(limit, int) and 0 < limit < _UNLIMITED
    ]
    return min(limits, default=None)


def _padding(tokenizer: Any, model: LoadedModel, batch_size: int) -> Padding:
    config = getattr(model.module, "config", None)
    fill = tokenizer.pad_token_id
    if fill is None:
        fill = getattr(config, "pad_token_id", None)
    if fill is None:
        if batch_size > 1:
            raise DataError(
                f"The tokenizer of {model.reference} has no padding token, so texts of different "
                f"length cannot share a batch. Set pad_token in tokenizer_config.json and "
                f"pad_token_id in config.json, or use --batch-size 1."
            )
        fill = 0
    values = {"input_ids": int(fill)}
    if "token_type_ids" in tokenizer.model_input_names:
        values["token_type_ids"] = int(getattr(tokenizer, "pad_token_type_id", 0))
    return Padding(values, tokenizer.padding_side)
