"""What a compression method is, and the registry of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from compressor.layers.candidates import ConvForm
from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import Needs
from compressor.methods.recipe import Recipe
from compressor.progress import Progress
from compressor.registry import Registry
from compressor.schema import Choice


@dataclass(frozen=True)
class Decision:
    """What a method decided.

    Args:
        ranks: Rank by layer name.
        recipe: How to truncate to them.
        selection: Candidates it compared on held-out data, if it did.
    """

    ranks: dict[str, int]
    recipe: Recipe
    selection: tuple[Choice, ...] = ()


class Method(Protocol):
    """Chooses a rank for every layer and how to truncate to it. One file each.

    A method may have an attribute ``conv_form``, the form that convolutions take where none was
    asked for: ``"auto"`` of ours; published rules are of matrices, and keep channel form.
    """

    @property
    def name(self) -> str:
        """Return the name it is registered under."""
        ...

    @property
    def source(self) -> str:
        """Return paper and equation, or where the idea comes from; the command line shows it."""
        ...

    def needs(self, *, gradients: bool) -> Needs:
        """Return what the method needs, given whether gradients are allowed."""
        ...

    def decide(
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Decide within what the candidates may cost together."""
        ...


def conv_form_of(method: str, asked: ConvForm | None) -> ConvForm:
    """Return the form of convolutions: what was asked for, or else the method's own."""
    if asked is not None:
        return asked
    own: ConvForm = getattr(METHODS.get(method), "conv_form", "channel")
    return own


METHODS: Registry[Method] = Registry(
    "method",
    group="methods",
    modules=(
        "compressor.methods.guided",
        "compressor.methods.measured_kl",
        "compressor.methods.baselines",
    ),
)
