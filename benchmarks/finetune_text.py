r"""Fine-tune a sentence encoder to classify texts, for the second text workload.

python -m benchmarks.finetune_text --base all-MiniLM-L6-v2 \
    --train 20newsgroups-train.tab --test 20newsgroups-test.tab --out newsgroups

writes ``newsgroups/model`` (a transformers directory) and ``newsgroups/data`` (train.csv and
test.csv), which the workload ``minilm-second-text`` takes as its two places. Tables are CSV, TSV or
Orange's ``.tab``, whose second and third line tell types and roles.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LONGEST_FIELD = 10**8
WARMUP = 0.1
TEXTS = ("text", "sentence")
LABELS = ("label", "category", "class")

Row = tuple[str, str]


def read_table(path: Path) -> list[Row]:
    """Return (text, label) of each row of a table whose header names both columns.

    Raises:
        SystemExit: If it does not.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    header = [name.strip().lower() for name in rows[0]]
    text = next((header.index(name) for name in TEXTS if name in header), None)
    label = next((header.index(name) for name in LABELS if name in header), None)
    if text is None or label is None:
        raise SystemExit(f"{path}: columns {rows[0]}; expected one of {TEXTS} and one of {LABELS}.")
    body = rows[3:] if path.suffix == ".tab" else rows[1:]
    return [(row[text], row[label]) for row in body if len(row) > max(text, label)]


def write_table(path: Path, rows: list[Row]) -> None:
    """Write (text, label) rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def batches(
    tokens: list[list[int]], labels: Tensor, size: int, padding: int, *, shuffle: bool
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield (input_ids and attention_mask [B, T], labels [B]), texts of like length together."""
    jitter = 8 * torch.rand(len(tokens)) if shuffle else torch.zeros(len(tokens))
    lengths = torch.tensor([len(ids) for ids in tokens]) + jitter
    parts = torch.split(lengths.argsort(), size)
    for index in torch.randperm(len(parts)) if shuffle else torch.arange(len(parts)):
        chosen = parts[int(index)]
        longest = max(len(tokens[i]) for i in chosen)
        ids = torch.tensor(
            [tokens[i] + [padding] * (longest - len(tokens[i])) for i in chosen.tolist()]
        )
        mask = torch.tensor(
            [[1] * len(tokens[i]) + [0] * (longest - len(tokens[i])) for i in chosen.tolist()]
        )
        yield {"input_ids": ids, "attention_mask": mask}, labels[chosen]


def train(
    model: nn.Module,
    tokens: list[list[int]],
    labels: Tensor,
    *,
    padding: int,
    epochs: float,
    rate: float,
    size: int,
) -> None:
    """Fit with AdamW, a warm-up and a linear decay; ``epochs`` need not be whole."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    per_epoch = math.ceil(len(tokens) / size)
    steps = max(int(epochs * per_epoch), 1)

    def scale(step: int) -> float:
        return min((step + 1) / (WARMUP * steps), (steps - step) / steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    model.train()
    done, total, start = 0, 0.0, time.perf_counter()
    while done < steps:
        for inputs, targets in batches(tokens, labels, size, padding, shuffle=True):
            loss = functional.cross_entropy(model(**inputs).logits, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done, total = done + 1, total + loss.item()
            if done % 20 == 0 or done == steps:
                left = (time.perf_counter() - start) / done * (steps - done) / 60
                print(
                    f"step {done}/{steps}  loss {total / 20:.3f}  {left:.1f} min left", flush=True
                )
                total = 0.0
            if done == steps:
                break


def accuracy(
    model: nn.Module, tokens: list[list[int]], labels: Tensor, *, padding: int, size: int
) -> float:
    """Return the share of texts classified correctly."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for inputs, targets in batches(tokens, labels, size, padding, shuffle=False):
            right += int((model(**inputs).logits.argmax(1) == targets).sum())
    return right / len(labels)


def main() -> None:
    """Read, train, test and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="transformers directory")
    parser.add_argument("--train", type=Path, required=True, help="table of training texts")
    parser.add_argument("--test", type=Path, required=True, help="table of test texts")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, help="largest number of training texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    parts = {name: read_table(getattr(options, name)) for name in ("train", "test")}
    if options.limit:
        drawn = torch.randperm(len(parts["train"]))[: options.limit]
        parts["train"] = [parts["train"][int(index)] for index in drawn]
    names = sorted({label for rows in parts.values() for _, label in rows})
    position = {name: index for index, name in enumerate(names)}
    for name, rows in parts.items():
        write_table(options.out / "data" / f"{name}.csv", rows)

    tokenizer: Any = AutoTokenizer.from_pretrained(options.base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        options.base,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id=position,
    )
    padding = int(tokenizer.pad_token_id)

    def encoded(rows: list[Row]) -> tuple[list[list[int]], Tensor]:
        texts = [text for text, _ in rows]
        found = tokenizer(texts, truncation=True, max_length=options.tokens)["input_ids"]
        return found, torch.tensor([position[label] for _, label in rows])

    train(
        model,
        *encoded(parts["train"]),
        padding=padding,
        epochs=options.epochs,
        rate=options.rate,
        size=options.batch_size,
    )
    found = accuracy(model, *encoded(parts["test"]), padding=padding, size=64)
    print(f"test accuracy {found:.4f}")
    model.save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
