"""Fuzz one target guided by coverage, with atheris (pip install 'compressor[fuzz]').

    python -m tests.fuzz.coverage safetensors -max_total_time=60

Options after the target are libFuzzer's. Inputs that reach new code are added to the corpus given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["compressor", "safetensors", "json"]):
    from tests.fuzz.targets import TARGETS, attempt


def main() -> None:
    """Run libFuzzer on the target that is named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        listed = ", ".join(TARGETS)
        raise SystemExit(
            f"usage: python -m tests.fuzz.coverage TARGET [OPTIONS]\ntargets: {listed}"
        )
    name = sys.argv.pop(1)
    target = TARGETS[name]
    corpus = Path(__file__).parent / "corpus" / name
    atheris.Setup([*sys.argv, str(corpus)], lambda data: attempt(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
