"""From what a person wrote to splits of token windows, for models that predict tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.collapse.token_capture import FREQUENT, FrequentTokens
from compressor.data.corpus import Documents, read_corpus
from compressor.data.hashing import content_digest, split_hash
from compressor.data.labelled import DataSource, LabelledData
from compressor.data.packing import Packer, Tokens
from compressor.data.splits import draw_splits
from compressor.errors import DataError
from compressor.forward import Batch, Task
from compressor.models.source import LoadedModel
from compressor.progress import SILENT, Progress
from compressor.settings import DataSettings
from compressor.tokens import IGNORED

DEFAULT_LENGTH = 512
CALIBRATION = 128
MOST_WINDOWS = 20_000
"""Windows that are read of each of the data's own splits, at most."""

SELECTION_SHARE = 8
"""One selection window for so many calibration windows, and at least as many windows as this."""

MASKED = 0.15
"""Share of tokens that masked models predict, as in BERT's training (arXiv 1810.04805)."""


@dataclass(frozen=True)
class WindowSplit:
    """Windows of tokens with the tokens that each position predicts.

    A causal model predicts the next token; a masked one the tokens behind masks, at seeded
    positions; an encoder-decoder reads the first half of the window and predicts the rest.

    Args:
        windows: Tokens [N, L].
        task: What the model predicts.
        batch_size: Windows a batch.
        special: Tokens that are no text and are never masked.
        mask: The token that stands for a masked one; masked models only.
        start: The token that an answer begins with; encoder-decoders only.
    """

    windows: Tokens
    task: Task
    batch_size: int
    special: tuple[int, ...] = ()
    mask: int = 0
    start: int = 0

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        """Yield ({input_ids [B, T], …}, labels [B, T']); labels are negative where none counts."""
        for start in range(0, len(self.windows), self.batch_size):
            ids = torch.from_numpy(self.windows[start : start + self.batch_size].astype(np.int64))
            if self.task == "masked":
                yield self._masked(ids, start)
            elif self.task == "seq2seq":
                yield self._answered(ids)
            else:
                labels = torch.full_like(ids, IGNORED)
                labels[:, :-1] = ids[:, 1:]
                yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels

    @property
    def labels(self) -> Tensor:
        """The tokens to predict, of all windows, [N, T']."""
        found = [labels for _, labels in self if labels is not None]
        return torch.cat(found)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Hash of each window's tokens."""
        return tuple(content_digest(window.tobytes()) for window in self.windows)

    @property
    def sha256(self) -> str:
        """Hash of the windows' tokens, in order."""
        return split_hash(self.digests, [None] * len(self))

    def _masked(self, ids: Tensor, first: int) -> Batch:
        # Each window's number seeds its draw, so that every pass masks the same tokens.
        draws = [
            torch.rand(ids.shape[1], generator=torch.Generator().manual_seed(first + row))
            for row in range(len(ids))
        ]
        text = ~torch.isin(ids, torch.tensor(self.special, dtype=ids.dtype))
        hidden = (torch.stack(draws) < MASKED) & text
        inputs = {"input_ids": ids.masked_fill(hidden, self.mask)}
        inputs["attention_mask"] = torch.ones_like(ids)
        return inputs, ids.masked_fill(~hidden, IGNORED)

    def _answered(self, ids: Tensor) -> Batch:
        half = ids.shape[1] // 2 + 1  # longer than the answer: rows of both never look alike
        source, answer = ids[:, :half], ids[:, half:]
        begin = torch.full_like(answer[:, :1], self.start)
        inputs = {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "decoder_input_ids": torch.cat([begin, answer[:, :-1]], 1),
        }
        return inputs, answer


def load_windows(
    settings: DataSettings,
    model: LoadedModel,
    *,
    seed: int,
    find: Callable[[str], DataSource],
    recovery_steps: int = 0,
    progress: Progress = SILENT,
) -> LabelledData:
    """Read texts and pack them into windows, and draw each split from them.

    Args:
        settings: Which data, and how it is read and split.
        model: The model whose tokenizer the text is for.
        seed: Seed of every draw.
        find: Returns the data source of a reference.
        recovery_steps: Read what so many batches can learn from, to recover accuracy.
        progress: Told what should be known of the data.

    Raises:
        DataError: If there is no such data, it cannot be read, it is too little, or the model has
            no tokenizer or too few positions.
    """
    if model.tokenizer is None:
        raise DataError(
            f"{model.reference} has no tokenizer; text needs one. Put tokenizer.json beside the "
            "model's config.json."
        )
    tokenizer: Any = model.tokenizer
    packer = Packer(tokenizer, _length(settings, model), where=model.reference)
    splits = {
        name: packer.windows(documents, MOST_WINDOWS)
        for name, documents in _corpus(settings, find).items()
    }
    notes = [
        f"The {name} text is longer; its first {MOST_WINDOWS:,} windows were read."
        for name, windows in splits.items()
        if len(windows) == MOST_WINDOWS
    ]
    calibration = settings.calibration or CALIBRATION
    draws = draw_splits(
        {name: len(windows) for name, windows in splits.items()},
        calibration=calibration,
        selection=settings.selection,
        limit=settings.limit,
        recovery=recovery_steps * _batch_size(settings),
        seed=seed,
    )
    # Every window holds hundreds of predictions: few of them suffice to choose by.
    most = settings.selection or max(SELECTION_SHARE, calibration // SELECTION_SHARE)
    found = draws.selection.indices
    spread = found[np.linspace(0, len(found) - 1, min(most, len(found))).astype(np.int64)]
    draws = replace(draws, selection=replace(draws.selection, indices=spread))
    made = {
        name: _split(splits[draw.origin][draw.indices], settings, model, tokenizer)
        for name, draw in (
            ("calibration", draws.calibration),
            ("selection", draws.selection),
            ("test", draws.test),
            ("recovery", draws.recovery),
        )
    }
    frequent = FrequentTokens(made["calibration"], most=FREQUENT)
    others = {digest for name in made if name != "test" for digest in made[name].digests}
    twice = len(others & {*made["test"].digests})
    notes += [
        *draws.notes,
        f"Samples are windows of {splits[draws.test.origin].shape[1]} tokens. Classes are the "
        f"{frequent.classes} most frequent tokens to predict, {100 * frequent.covered:.0f} % of "
        "all.",
        *(_TASK_NOTES[model.task]),
        *([f"{twice} test windows are also among those of other splits."] if twice else []),
    ]
    for note in notes:
        progress.note(note)
    return LabelledData(
        reference=settings.data,
        calibration=made["calibration"],
        selection=made["selection"],
        test=made["test"],
        recovery=made["recovery"],
        class_names=tuple(tokenizer.decode([int(token)]) for token in frequent.tokens),
        notes=tuple(notes),
        test_bytes=_bytes(made["test"], tokenizer),
    )


_TASK_NOTES: Mapping[Task, tuple[str, ...]] = {
    "classification": (),
    "causal": (),
    "masked": (
        f"{100 * MASKED:.0f} % of the tokens are masked and predicted, the same each time.",
    ),
    "seq2seq": ("The first half of each window is the input, the second half what is predicted.",),
}


def _length(settings: DataSettings, model: LoadedModel) -> int:
    longest = model.architecture.get("max_length")
    if settings.max_length is None:
        return min(DEFAULT_LENGTH, longest) if isinstance(longest, int) else DEFAULT_LENGTH
    if isinstance(longest, int) and settings.max_length > longest + 2:
        raise DataError(
            f"--max-length {settings.max_length} is more than the {longest} tokens that "
            f"{model.reference} takes. Give at most {longest}."
        )
    return settings.max_length


def _corpus(settings: DataSettings, find: Callable[[str], DataSource]) -> dict[str, Documents]:
    """Return the documents of each split, other data's as the test where it is named."""
    found = read_corpus(settings.data, settings, find=find)
    if settings.test_data is None:
        return found
    other = read_corpus(settings.test_data, settings, find=find)
    test = next((other[name] for name in ("test", "all", "validation") if name in other), None)
    if test is None:
        raise DataError(f"{settings.test_data} has no test part. Found: {', '.join(other)}.")
    return {
        **{"train" if name == "all" else name: part for name, part in found.items()},
        "test": test,
    }


def _batch_size(settings: DataSettings) -> int:
    return settings.batch_size or 1


def _split(
    windows: Tokens, settings: DataSettings, model: LoadedModel, tokenizer: Any
) -> WindowSplit:
    mask = tokenizer.mask_token_id if model.task == "masked" else 0
    if mask is None:
        raise DataError(
            f"The tokenizer of {model.reference} has no mask token, as masked models need."
        )
    start = model.architecture.get("decoder_start_token_id")
    return WindowSplit(
        windows=windows,
        task=model.task,
        batch_size=_batch_size(settings),
        special=tuple(tokenizer.all_special_ids) if model.task == "masked" else (),
        mask=mask,
        start=start if isinstance(start, int) else 0,
    )


def _bytes(split: WindowSplit, tokenizer: Any) -> int | None:
    """Return the UTF-8 bytes of the predicted text; None where single tokens are predicted."""
    if split.task == "masked":
        return None
    return sum(
        len(tokenizer.decode(row[row >= 0], clean_up_tokenization_spaces=False).encode())
        for row in split.labels
    )
