"""``compile``: the module through torch.compile, with its default backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from compressor.errors import ModelError
from compressor.evaluation.runtimes.runtime import RUNTIMES, Timed
from compressor.forward import Forward, Inputs


@dataclass(frozen=True)
class Compile:
    """torch.compile; on a CPU it needs a C++ compiler."""

    name: str = "compile"

    def prepare(self, model: nn.Module, forward: Forward, inputs: Inputs) -> Timed:
        """Compile by a first forward, which is not timed, and return the next ones."""
        compiled = cast(nn.Module, torch.compile(model, dynamic=False))
        try:
            with torch.inference_mode():
                forward(compiled, inputs)
        except Exception as error:  # the compiler's errors have no common base
            cause = str(error).strip().splitlines()
            raise ModelError(
                f"torch.compile cannot run the model: {cause[0] if cause else error!r}. A CPU "
                "needs a C++ compiler (apt-get install g++). Or take --runtime eager."
            ) from error
        return lambda: forward(compiled, inputs)


RUNTIMES.register("compile")(Compile())
