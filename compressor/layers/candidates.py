"""The layers of a model that can be factorized, and in which forms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import nn

from compressor.layers.surgery import BuildSpec

ConvForm = Literal["channel", "spatial", "auto"]
"""Form that convolutions with a kernel over two axes take: ``auto`` leaves the choice open."""


class Form(NamedTuple):
    """What a layer becomes.

    Args:
        kind: Name of the layer kind.
        folded: Shape of W folded, whose rank is lowered; None where it is W's own.
        inner_rows: Rows that the first factor makes for each row of the output.
    """

    kind: str
    folded: tuple[int, int] | None = None
    inner_rows: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A layer that can be factorized.

    Args:
        name: Module name.
        kind: Name of its layer kind, which says what form its factors take.
        shape: (m, n) of its matrix.
        has_bias: Whether it has a bias.
        group: Name of the first layer called on the same rows; its statistics serve this one too.
        positions: Rows per sample that its output has (tokens or positions), as the probe saw.
        tied: Output layers that share an embedding's table. They are factorized with it and share
            the thin table; each has a factor [r, D] of its own.
        folded: As in `Form`.
        inner_rows: As in `Form`.
        others: Other forms that it may take.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    has_bias: bool
    group: str
    positions: float
    tied: tuple[str, ...] = ()
    folded: tuple[int, int] | None = None
    inner_rows: float = 1.0
    others: tuple[Form, ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of the dense layer, m·n."""
        return self.shape[0] * self.shape[1]

    @property
    def full_rank(self) -> int:
        """min(m, n), or that of the folded matrix."""
        return min(self.folded or self.shape)

    @property
    def break_even_rank(self) -> int:
        """Largest rank r at which r · `rank_cost` < m·n."""
        return (self.parameters - 1) // self.rank_cost

    @property
    def rank_cost(self) -> int:
        """Weights that each rank costs: both sides of the matrix, and m for each tied layer."""
        return sum(self.folded or self.shape) + len(self.tied) * self.shape[0]

    @property
    def rank_work(self) -> float:
        """Multiply-adds that each rank costs, where a weight of the dense layer costs one."""
        return self.rank_cost + (self.inner_rows - 1) * (self.folded or self.shape)[1]

    @property
    def taps(self) -> int:
        """Columns of the second factor that each rank has: kw in spatial form, else 1."""
        return 1 if self.folded is None else self.folded[0] // self.shape[0]

    @property
    def folds(self) -> bool:
        """Whether it is, or may become, a layer whose rank is that of a folded matrix."""
        return any(form.folded is not None for form in (self.form, *self.others))

    @property
    def form(self) -> Form:
        """What it becomes."""
        return Form(self.kind, self.folded, self.inner_rows)

    def in_form(self, kind: str) -> Candidate:
        """Return the layer in another form, or as it is if that is its kind.

        Raises:
            KeyError: If it has no such form.
        """
        forms = {form.kind: form for form in (self.form, *self.others)}
        chosen = forms.pop(kind)
        return replace(self, **chosen._asdict(), others=tuple(forms.values()))

    def head(self, name: str) -> Candidate:
        """Return the output layer of this name that is tied to this embedding, to be watched."""
        m, n = self.shape
        return replace(self, name=name, kind="linear", shape=(n, m), group=name, tied=())

    def cost(self, rank: int) -> int:
        """Return the weights kept at ``rank``; above break-even the layer stays dense."""
        return rank * self.rank_cost if rank <= self.break_even_rank else self.parameters

    def kept(self, rank: int) -> int:
        """Return the rank that the layer has at ``rank``; above break-even it stays dense."""
        return rank if rank <= self.break_even_rank else self.full_rank


@dataclass(frozen=True)
class Candidates:
    """All candidates of a model in forward order, and the reasons of the layers left dense.

    Args:
        layers: Candidates by module name, in the order of their first call.
        left_dense: Reason by module name.
        parameters: All parameters of the model.
    """

    layers: dict[str, Candidate]
    left_dense: dict[str, str]
    parameters: int

    @property
    def layer_parameters(self) -> int:
        """Weights of all candidates, dense."""
        return sum(layer.parameters for layer in self.layers.values())

    def only(self, names: Container[str]) -> Candidates:
        """Return the candidates of these names, in the same order; nothing else changes."""
        kept = {name: layer for name, layer in self.layers.items() if name in names}
        return replace(self, layers=kept)

    def without(self, names: Collection[str], reason: str) -> Candidates:
        """Return the candidates but for ``names``, which stay dense for a reason."""
        kept = {name: layer for name, layer in self.layers.items() if name not in names}
        return replace(
            self, layers=kept, left_dense={**self.left_dense, **dict.fromkeys(names, reason)}
        )

    def in_forms(self, kinds: Mapping[str, str]) -> Candidates:
        """Return the candidates in other forms, by the kinds of those that change.

        Raises:
            KeyError: If one has no such form.
        """
        return replace(
            self, layers={n: c.in_form(kinds.get(n, c.kind)) for n, c in self.layers.items()}
        )

    def thinnest(self) -> Candidates:
        """Return the candidates in the form of theirs whose ranks cost the fewest weights."""
        return self.in_forms(
            {
                name: min(
                    (layer.in_form(form.kind) for form in (layer.form, *layer.others)), key=_cost
                ).kind
                for name, layer in self.layers.items()
                if layer.others
            }
        )

    @property
    def folded(self) -> dict[str, str]:
        """The kind of each candidate whose rank is that of a folded matrix."""
        return {name: c.kind for name, c in self.layers.items() if c.folded is not None}

    def folded_forms(self) -> dict[str, str]:
        """Return the kind of each candidate's other form, of those that have one."""
        return {name: layer.others[0].kind for name, layer in self.layers.items() if layer.others}

    def groups(self) -> dict[str, list[Candidate]]:
        """Return the candidates by the group whose input rows they share."""
        groups: dict[str, list[Candidate]] = defaultdict(list)
        for layer in self.layers.values():
            groups[layer.group].append(layer)
        return dict(groups)


def _cost(layer: Candidate) -> int:
    return layer.rank_cost


def specs_of(model: nn.Module, layer: Candidate, rank: int) -> dict[str, BuildSpec]:
    """Return what a candidate becomes at a rank, and each layer tied to it, by module name."""
    heads = {
        name: BuildSpec(
            "linear", rank, getattr(model.get_submodule(name), "bias", None) is not None
        )
        for name in layer.tied
    }
    return {layer.name: BuildSpec(layer.kind, rank, layer.has_bias), **heads}
