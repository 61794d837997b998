"""What is known of a dense model before any rank is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter
from torch import Tensor, nn

from compressor.cache import Cache, Tensors
from compressor.collapse.capture import Statistics
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.row_energy import BatchEnergies
from compressor.collapse.watch import LayerStatistics
from compressor.evaluation.loop import Evaluation, evaluate, score
from compressor.forward import Batches, Forward, batch_length, largest_batch, token_mask
from compressor.heap import give_back_freed
from compressor.layers.candidates import Candidates, ConvForm
from compressor.methods.attribution import attributed_divergence
from compressor.methods.factorize import Decompositions, factorized
from compressor.methods.judging import SHARES, Begun, Bounded, begun, judged_within
from compressor.methods.metrics import Needs, output_metric
from compressor.methods.norms import (
    NormInputs,
    NormStatistics,
    corrected_norms,
    has_batch_norms,
    norm_inputs,
    norm_statistics,
    with_norm_statistics,
)
from compressor.methods.recipe import Recipe
from compressor.methods.refit import BLOCKWISE_ACTIVATIONS, can_refit, refitted
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward


class Judgement(BaseModel):
    """How a compressed model fares on the selection data.

    Args:
        kl: Mean KL from the dense model, in nats.
        accuracy: None where there are no labels, and where ``kl`` is a lower bound.
        recipe: The recipe with nothing open.
        lower_bound: Whether ``kl`` is only the least that it can be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kl: float
    accuracy: float | None
    recipe: Recipe
    lower_bound: bool = False


class _Trial(NamedTuple):
    """What is known of a model that is being judged.

    Args:
        recipe: What it was factorized by, with nothing open.
        seen: How it fares on the samples that it was run on.
        norms: Its BatchNorm statistics where they were corrected, which takes long.
    """

    recipe: Recipe
    seen: Begun
    norms: NormStatistics | None


@dataclass(frozen=True)
class Measurement:
    """A dense model, its candidates, and what one pass over the calibration data found.

    Args:
        model: The dense model, its fused modules taken apart.
        candidates: Its layers that can be factorized.
        statistics: What the pass gathered; None where only weights are needed.
        calibration: The batches it ran on.
        selection: Held-out batches that choices are judged on; None where there are none.
        forward: How to call the model.
        gradients: Whether the pass went backwards too.
        seed: Seed of the pass.
        cache: Where what is made from here on is kept; its keys name the model, the data and the
            pass. None keeps it in memory alone.
        given: The dense model as the caller has it; None where it is ``model``.
        conv_form: Form of convolutions that was asked for; None leaves it to the method.
        blockwise: Whether memory goes before speed: it was measured block by block.
    """

    model: nn.Module = field(repr=False)
    candidates: Candidates
    statistics: Statistics | None = field(repr=False)
    calibration: Batches = field(repr=False)
    selection: Batches | None = field(repr=False)
    forward: Forward
    gradients: bool
    seed: int
    cache: Cache | None = field(default=None, repr=False, compare=False)
    given: nn.Module | None = field(default=None, repr=False)
    conv_form: ConvForm | None = None
    blockwise: bool = False
    _kept: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    _begun: dict[str, _Trial] = field(default_factory=dict, repr=False, compare=False)
    _again: Callable[[int], Measurement] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    _smaller: dict[int, Measurement] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _origin: Measurement | None = field(default=None, init=False, repr=False, compare=False)

    def remade_by(self, again: Callable[[int], Measurement]) -> Measurement:
        """Return this measurement, told how to measure again on batches of at most so many."""
        object.__setattr__(self, "_again", again)
        return self

    @property
    def halvable(self) -> int:
        """Samples of the largest batch; 1 where it cannot be measured again on smaller ones."""
        return 1 if self._again is None else largest_batch(self.calibration)

    def at_most(self, samples: int | None) -> Measurement:
        """Return the same made of batches of at most so many samples, measured once; None: any."""
        if samples is None or self.halvable <= samples:
            return self
        if samples not in self._smaller:
            assert self._again is not None
            self._smaller[samples] = self._again(samples)
        return self._smaller[samples]

    def in_forms(self, kinds: Mapping[str, str]) -> Measurement:
        """Return the measurement with layers in other forms; what either makes serves both.

        Args:
            kinds: Kind of each layer that changes.

        Raises:
            KeyError: If a layer has no such form.
        """
        candidates = self.candidates.in_forms(kinds)
        if candidates == self.candidates:
            return self
        origin = self._origin or self
        other = replace(self, candidates=candidates)
        object.__setattr__(other, "_origin", origin)
        if origin._again is None:
            return other
        forms = {name: layer.kind for name, layer in candidates.layers.items()}
        return other.remade_by(lambda most: origin.at_most(most).in_forms(forms))

    @cached_property
    def dense_norm_inputs(self) -> NormInputs:
        """Moments of the dense model's BatchNorm inputs, that corrections are relative to."""
        if self._origin is not None:
            return self._origin.dense_norm_inputs
        return norm_inputs(self.model, self.calibration, forward=self.forward)

    @cached_property
    def batch_energies(self) -> tuple[BatchEnergies, ...]:
        """How much the predictions depend on each row of the first calibration batches."""
        if self._origin is not None:
            return self._origin.batch_energies
        energies = () if self.statistics is None else self.statistics.energies
        return tuple(
            BatchEnergies(batch_length(inputs), token_mask(inputs), found)
            for (inputs, _), found in zip(self.calibration, energies, strict=False)
        )

    @cached_property
    def decompositions(self) -> Decompositions:
        """Decompositions of the layers, shared by every recipe that uses the same metrics."""
        if self._origin is not None:
            return self._origin.decompositions.of(self.candidates.layers)
        return Decompositions(
            self.model, self.candidates.layers, self.layers, self.cache, self.forward.group
        )

    @property
    def layers(self) -> Mapping[str, LayerStatistics]:
        """Statistics by layer name; empty where only weights were needed."""
        return {} if self.statistics is None else self.statistics.layers

    @property
    def refits(self) -> bool:
        """Whether factors can be refitted in sequence."""
        return can_refit(self.candidates.layers)

    def has(self, needs: Needs) -> bool:
        """Return whether the pass gathered what a method needs."""
        if needs == "weights":
            return True
        if needs == "gradients":
            return self.gradients
        if needs == "loss":
            known = (s.loss is not None or s.counts is not None for s in self.layers.values())
            return bool(self.layers) and all(known)
        return self.statistics is not None

    def nc1_quotients(self) -> dict[str, float | None]:
        """Return tr Σ_W / tr Σ_B of each layer's input, by layer name."""
        return {name: nc1_quotient(layer.input_classes) for name, layer in self.layers.items()}

    @cached_property
    def dense_selection(self) -> Evaluation | None:
        """How the dense model fares on the selection data; None where there is none."""
        if self._origin is not None:
            return self._origin.dense_selection
        if self.selection is None:
            return None
        if self.cache is None or isinstance(self.forward, TokenForward):
            return evaluate(self.model, self.selection, forward=self.forward)

        def make() -> Tensors:
            assert self.selection is not None
            found = evaluate(self.model, self.selection, forward=self.forward)
            assert isinstance(found.logits, Tensor)
            labels = {} if found.labels is None else {"labels": found.labels}
            return {"logits": found.logits, **labels}

        kept = self.cache.tensors("logits", {"split": "selection"}, make)
        return score(kept["logits"], kept.get("labels"))

    def factorized(
        self, ranks: dict[str, int], recipe: Recipe, *, progress: Progress = SILENT
    ) -> tuple[nn.Module, Recipe]:
        """Return the model factorized as ranks and recipe say, and the recipe with nothing open.

        Where the recipe leaves the BatchNorm correction open, held-out data decides; without such
        data it is made.
        """
        made = self._kept.pop(self._key(ranks, recipe), None)
        if made is not None:
            return made, recipe
        plain = self._before_refit(ranks, recipe)
        if plain is None:
            plain = factorized(
                self.model, self.candidates.layers, ranks, recipe, self.decompositions
            )
        if recipe.refit is not None:
            return self._refitted(plain, recipe, recipe.refit, progress)
        if recipe.norm_correction is False or not has_batch_norms(self.model):
            return plain, recipe.model_copy(update={"norm_correction": False})
        corrected = corrected_norms(
            plain, self.dense_norm_inputs, forward=self.forward, progress=progress
        )
        better = True
        if recipe.norm_correction is None and self.selection is not None:
            better = self.divergence(corrected) <= self.divergence(plain)
        chosen = corrected if better else plain
        return chosen, recipe.model_copy(update={"norm_correction": better})

    def least_divergence(
        self, ranks: dict[str, int], recipe: Recipe, *, share: float = SHARES[0]
    ) -> float:
        """Return the least that the KL can be, as far as the samples tell that can tell most.

        What they have told is kept until `judged` is asked for the same. Of tokens the least is 0.

        Args:
            ranks: Rank by layer name.
            recipe: How to truncate.
            share: Share of the samples that are asked, one of `judging.SHARES`.

        Raises:
            ValueError: If there is no selection data.
        """
        if isinstance(self.forward, TokenForward):
            return 0.0  # their logits are not kept

        def make() -> dict[str, object]:
            return {"kl": self._seen(ranks, recipe, share).seen.least}

        found = self._recalled("least divergence", ranks, recipe, make, beside={"share": share})
        least = TypeAdapter(dict[str, float]).validate_python(found)["kl"]
        return float(self.forward.group.told(least))  # all processes go on alike

    def _seen(self, ranks: dict[str, int], recipe: Recipe, share: float) -> _Trial:
        """Return what a share of the samples tells, and keep it."""
        selection, dense = self.selection, self.dense_selection
        if selection is None or dense is None:
            raise ValueError("there is no selection data to judge on")
        key = self._key(ranks, recipe)
        known = self._begun.get(key)
        model, settled = self._made(ranks, recipe, known)
        seen = begun(
            model,
            selection,
            dense,
            forward=self.forward,
            share=share,
            first=None if known is None else known.seen,
        )
        norms = norm_statistics(model) if settled.norm_correction else None
        self._begun[key] = _Trial(settled, seen, norms)
        return self._begun[key]

    def _made(
        self, ranks: dict[str, int], recipe: Recipe, known: _Trial | None
    ) -> tuple[nn.Module, Recipe]:
        """Return `factorized`, without choosing and correcting again what is known."""
        if known is None:
            return self.factorized(ranks, recipe)
        plain = known.recipe.model_copy(update={"norm_correction": False})
        model = self.factorized(ranks, plain)[0]
        if known.norms is not None:
            model = with_norm_statistics(model, known.norms)
        return model, known.recipe

    def judged(
        self, ranks: dict[str, int], recipe: Recipe, *, limit: float | None = None
    ) -> tuple[Judgement, nn.Module | None]:
        """Factorize as ranks and recipe say and judge the result, or recall how it was judged.

        Args:
            ranks: Rank by layer name.
            recipe: How to truncate.
            limit: A KL at which it has lost: where a part of the data shows that it does not come
                below, its judgement is a lower bound. None judges on everything.

        Returns:
            The judgement, and the model where it had to be made.

        Raises:
            ValueError: If there is no selection data.
        """
        made: list[nn.Module] = []
        if isinstance(self.forward, TokenForward):
            limit = None  # their logits are not kept

        def make() -> dict[str, object]:
            model, settled, found = self._tried(ranks, recipe, limit)
            if model is not None:
                made.append(model)
            return {
                "kl": found.kl,
                "accuracy": None if found.whole is None else found.whole.accuracy,
                "recipe": settled.model_dump(mode="json"),
                "lower_bound": found.whole is None,
            }

        beside = {} if limit is None else {"limit": limit}
        found = self._recalled("judgement", ranks, recipe, make, beside=beside)
        judgement = Judgement.model_validate(self.forward.group.told(found))
        return judgement, made[0] if made else None

    def _tried(
        self, ranks: dict[str, int], recipe: Recipe, limit: float | None
    ) -> tuple[nn.Module | None, Recipe, Bounded]:
        """Return a factorized model, its recipe with nothing open, and how it fares.

        Where a part of the data shows that its KL reaches the limit, that is all that is known.
        """
        limit = math.inf if limit is None else limit
        known = self._begun.pop(self._key(ranks, recipe), None)
        if known is not None and known.seen.least >= limit and not known.seen.whole:
            return None, known.recipe, Bounded(known.seen.least, None)
        model, settled = self._made(ranks, recipe, known)
        dense = self.dense_selection
        if self.selection is None or dense is None or isinstance(self.forward, TokenForward):
            return model, settled, Bounded.of(self.judge(model))
        found = judged_within(
            model,
            self.selection,
            dense,
            limit,
            forward=self.forward,
            first=None if known is None else known.seen,
        )
        return model, settled, found

    def attributed(self, ranks: dict[str, int], recipe: Recipe) -> dict[str, float]:
        """Return each factorized layer's share of the KL on calibration data, or recall it."""

        def make() -> dict[str, object]:
            model, settled = self.factorized(ranks, recipe)
            self.keep(ranks, settled, model)
            return dict(
                attributed_divergence(
                    self.model,
                    model,
                    self.candidates.layers,
                    self.calibration,
                    forward=self.forward,
                )
            )

        found = self._recalled("shares", ranks, recipe, make)
        return TypeAdapter(dict[str, float]).validate_python(found)

    def _before_refit(self, ranks: dict[str, int], recipe: Recipe) -> nn.Module | None:
        """Return the model that a refit begins with, where it is the one that is kept."""
        if recipe.refit is None or recipe.norm_correction is not False:
            return None
        return self._kept.get(self._key(ranks, recipe.model_copy(update={"refit": None})))

    def _refitted(
        self, plain: nn.Module, recipe: Recipe, ridge: float, progress: Progress
    ) -> tuple[nn.Module, Recipe]:
        """Return a factorized model refitted; BatchNorm is corrected on the way unless refused."""
        norms = recipe.norm_correction is not False and has_batch_norms(self.model)
        if self.blockwise:
            give_back_freed()
        fitted = refitted(
            self.model,
            plain,
            self.candidates.layers,
            self.calibration,
            self.batch_energies,
            forward=self.forward,
            metrics=lambda name: output_metric(self.layers[name]),
            ridge=ridge,
            norms=norms,
            activations=BLOCKWISE_ACTIVATIONS if self.blockwise else None,
            progress=progress,
        )
        return fitted, recipe.model_copy(update={"norm_correction": norms})

    def keep(self, ranks: dict[str, int], recipe: Recipe, made: nn.Module) -> None:
        """Keep a model that was made to be judged, for the one call that will ask for it again."""
        self._kept.clear()
        self._kept[self._key(ranks, recipe)] = made

    def _recalled(
        self,
        name: str,
        ranks: dict[str, int],
        recipe: Recipe,
        make: Callable[[], dict[str, object]],
        *,
        beside: Mapping[str, object] | None = None,
    ) -> object:
        """Return what ``make`` makes of the model at these ranks, or what the cache has of it.

        Args:
            name: What is made.
            ranks: Rank by layer name.
            recipe: How to truncate.
            make: Makes it.
            beside: What it depends on besides.
        """
        if self.cache is None:
            return make()
        of = {**self._identity(ranks, recipe), **(beside or {})}
        found: object = self.cache.record(name, of, make)
        return found

    def _identity(self, ranks: dict[str, int], recipe: Recipe) -> dict[str, object]:
        """Return what tells one factorization of the model from another."""
        found: dict[str, object] = {
            "ranks": sorted(ranks.items()),
            "recipe": recipe.model_dump(mode="json"),
        }
        if self.candidates.folded:
            found["forms"] = sorted(self.candidates.folded.items())
        if self.blockwise and recipe.refit is not None:  # it goes in other groups then
            found["blockwise"] = True
        return found

    def _key(self, ranks: dict[str, int], recipe: Recipe) -> str:
        return json.dumps(self._identity(ranks, recipe))

    def divergence(self, compressed: nn.Module) -> float:
        """Return the mean KL from the dense model on the selection data, in nats."""
        found = self.judge(compressed).kl_to_dense
        assert found is not None
        return found

    def judge(self, compressed: nn.Module) -> Evaluation:
        """Return how a compressed model fares on the selection data.

        Raises:
            ValueError: If there is no selection data.
        """
        if self.selection is None:
            raise ValueError("there is no selection data to judge on")
        return evaluate(
            compressed,
            self.selection,
            forward=self.forward,
            dense_logits=None if self.dense_selection is None else self.dense_selection.logits,
        )


def hold_out(batches: Batches, *, every: int = 4) -> tuple[Batches, Batches | None]:
    """Split batches into calibration and selection: every fourth one is held out.

    Fewer than ``every`` batches are all kept for calibration.
    """
    kept = list(batches)
    held = kept[every - 1 :: every]
    rest = [batch for index, batch in enumerate(kept) if index % every != every - 1]
    return rest, held or None
