"""`compress --stream` under an enforced limit of memory, on a checkpoint several times as large.

python -m benchmarks.streaming [--cap 1300] [--times 3] [--hidden 512] [--wide 8192] [--out FOLDER]
python -m benchmarks.streaming --data --method gfwsvd --cap 1300 --wide 2048

A LLaMA of random weights is written shard by shard, until its files hold ``times`` the cap. It is
compressed in a process of its own whose data segment may not grow beyond the cap (RLIMIT_DATA: heap
and private mappings, the interpreter's and the libraries' included; an allocation beyond it fails).
Reported are the peak of the process's anonymous memory (RssAnon, sampled), and what the same
command takes under the same limit without ``--stream``. With ``--data`` the method is one that
needs a pass over data: few short windows of made-up text, on which both models are evaluated too.
With ``--kills 10`` a run with ``--resume``
is killed by SIGKILL at that many random moments, each time after it was taken up again, and its
weights are compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

MIB = 2**20
POLL = 0.02
"""Seconds between two looks at the process's memory."""


WORDS = 500
"""Words of the made-up language; the model's vocabulary has a few tokens more."""

WINDOWS = ["--calibration", "4", "--selection", "1", "--limit", "2", "--max-length", "64"]
"""What is measured and evaluated on: enough to run every part of the code."""


def write_text(path: Path) -> None:
    """Write text of the made-up language, frequent words first."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(WORDS)]
    drawn = rng.choices(words, [1 / (rank + 1) for rank in range(WORDS)], k=20000)
    path.write_text(" ".join(drawn), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of one token a word."""
    tokens = ["<unk>", "<end>", *(f"w{number}" for number in range(WORDS))]
    inner = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(tokens)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    made.save_pretrained(folder)


def write_checkpoint(folder: Path, size: int, hidden: int, wide: int) -> int:
    """Write a LLaMA in float32 with at least ``size`` bytes of weights; return its bytes."""
    block = 4 * (4 * hidden * hidden + 3 * hidden * wide)
    layers = -(-size // block)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=512,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    write_tokenizer(folder)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    ends = {
        "model.embed_tokens.weight": matrix(512, hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": matrix(512, hidden),
    }
    index = {}
    for layer in range(-1, layers):
        tensors = ends if layer < 0 else _block(layer, hidden, wide, matrix)
        name = f"model-{layer + 2:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _block(
    layer: int, hidden: int, wide: int, matrix: Callable[[int, int], Tensor]
) -> dict[str, Tensor]:
    prefix = f"model.layers.{layer}"
    shapes = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    tensors = {f"{prefix}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return tensors | {f"{prefix}.{name}.weight": torch.ones(hidden) for name in norms}


def limited(words: list[str], cap: int) -> tuple[int, int, float, str]:
    """Run the command line under a limit; return its exit code, peak RssAnon, seconds and errors.

    Args:
        words: Words of the command line.
        cap: Bytes that its data segment may hold; 0 limits nothing.
    """

    def limit() -> None:
        if cap:
            resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))

    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "compressor", *words, "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=limit,  # noqa: PLW1509  # no other thread runs here
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(POLL)
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    return process.returncode, peak, time.perf_counter() - start, text


def killed(
    words: list[str], out: Path, seconds: float, kills: int, cap: int
) -> list[dict[str, str]]:
    """Kill a run at random moments, each time after it was taken up again; return what it wrote.

    Args:
        words: Words of the command line, but for the place to write.
        out: The place; a run that is done before its time has come is begun anew there.
        seconds: What an undisturbed run takes.
        kills: How often to kill it.
        cap: As of `limited`.

    Returns:
        Digests of each run that came to its end.
    """
    rng = random.Random(0)
    words = [*words, "--out", str(out), "--resume"]
    found: list[dict[str, str]] = []
    met = 0
    while met < kills:
        process = subprocess.Popen(
            [sys.executable, "-m", "compressor", *words, "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        try:
            process.wait(timeout=rng.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            met += 1
        else:
            found.append(digests(out))
            shutil.rmtree(out, ignore_errors=True)
    limited(words, cap)
    return [*found, digests(out)]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the weights and their plan are made of."""
    files = [*folder.glob("*.safetensors*"), folder / "plan.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def quality(folder: Path) -> dict[str, float]:
    """Return the perplexities that a streamed run tells, where it was given data."""
    try:
        report = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    sides = ("dense", "compressed")
    return {f"perplexity_{side}": report[side]["perplexity"] for side in sides if report[side]}


def _anonymous(process: int) -> int:
    """Return RssAnon of a process in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main() -> None:
    """Print one line of JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cap", type=int, default=1300, help="MiB")
    parser.add_argument("--times", type=float, default=3.0, help="size of the files over the cap")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--wide", type=int, default=8192)
    parser.add_argument("--method", default="svd")
    parser.add_argument("--data", action="store_true", help="measure and evaluate on text")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=None, help="where to work; else a temporary one"
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streaming-", dir=given.out))
    try:
        cap = given.cap * MIB
        model, text = folder / "model", folder / "text.txt"
        model.mkdir()
        size = write_checkpoint(model, int(given.times * cap), given.hidden, given.wide)
        write_text(text)
        budget = ["--budget", "layers=60%", "--method", given.method]
        base = ["compress", str(model), *budget]
        words = ["--data", str(text), *WINDOWS]
        streamed = [*base, "--stream", *(words if given.data else ())]
        runs = {
            "imports alone": ["inspect", "compressor/demo", "--json"],
            "streamed": [*streamed, "--out", str(folder / "streamed")],
            "as a whole": [*base, *words, "--out", str(folder / "whole")],
        }
        for name, line in runs.items():
            code, peak, seconds, errors = limited(line, cap)
            row = {
                "run": name,
                "cap_mib": given.cap,
                "checkpoint_mib": round(size / MIB),
                "checkpoint_over_cap": round(size / cap, 2),
                "exit_code": code,
                "peak_rss_anon_mib": round(peak / MIB),
                "seconds": round(seconds, 1),
                "error": errors[-200:] if code else "",
            }
            row |= quality(folder / "streamed") if name == "streamed" else {}
            print(json.dumps(row), flush=True)
            took = seconds if name == "streamed" and code == 0 else 0.0
            if given.kills and took:
                ended = killed(streamed, folder / "killed", took, given.kills, cap)
                wanted = digests(folder / "streamed")
                same = sum(found == wanted for found in ended)
                told = {"run": "killed", "kills": given.kills, "ended": len(ended), "same": same}
                print(json.dumps(told), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
