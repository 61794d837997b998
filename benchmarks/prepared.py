"""One workload under one seed, measured once for every method and budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import get_args

from benchmarks.arms import Arm, all_arms
from benchmarks.controls import (
    PERMUTED,
    SHUFFLED,
    ShuffledLabels,
    permuted,
    share_caches,
    with_shuffled_labels,
)
from benchmarks.resources import Cost, metered
from benchmarks.results import Figures
from benchmarks.workloads import Settings
from compressor.checkpoint.storage import round_to_storage_
from compressor.collapse.capture import Statistics
from compressor.collapse.watch import LayerStatistics
from compressor.data import load_data
from compressor.evaluation.loop import Evaluation, evaluate
from compressor.fingerprint import hash_of, hash_of_weights
from compressor.forward import Forward, default_device
from compressor.gathering import gather
from compressor.layers.candidates import Candidate
from compressor.methods.factorize import Decompositions
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import Needs, Truncation
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import label
from compressor.models import load_model
from compressor.progress import SILENT
from compressor.stages import factorize, measure
from compressor.tokens import TokenForward

Key = tuple[str, str, str, object]


@dataclass
class Spent:
    """What one decomposition cost, and the bytes it holds."""

    seconds: float
    memory: int


class SharedDecompositions(Decompositions):
    """Decompositions that remember what each cost, and which were used since it was asked last."""

    def __init__(
        self,
        measurement: Measurement,
        layers: dict[str, Candidate],
        statistics: dict[str, LayerStatistics],
    ) -> None:
        super().__init__(measurement.model, layers, statistics)
        self._spent: dict[Key, Spent] = {}
        self._used: set[Key] = set()
        self._fresh: set[Key] = set()

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition in the recipe's metric."""
        key = (name, self._layers[name].kind, recipe.metric, recipe.alpha)
        self._used.add(key)
        if key in self._spent:
            return super().get(name, recipe)
        start = time.perf_counter()
        found = super().get(name, recipe)
        seconds = time.perf_counter() - start
        tensors = list(vars(found.decomposition).values())
        held = sum(tensor.nelement() * tensor.element_size() for tensor in tensors)
        self._spent[key] = Spent(seconds, held)
        self._fresh.add(key)
        return found

    def begin(self) -> None:
        """Forget what was used."""
        self._used.clear()
        self._fresh.clear()

    @property
    def used(self) -> Spent:
        """What all that was used since then cost, whenever it was made."""
        return self._sum(self._used)

    @property
    def made(self) -> Spent:
        """What was made since then."""
        return self._sum(self._fresh)

    def _sum(self, keys: Iterable[Key]) -> Spent:
        found = [self._spent[key] for key in keys if key in self._spent]
        return Spent(sum(part.seconds for part in found), sum(part.memory for part in found))


@dataclass
class DenseCache:
    """The dense model's evaluations by model, test split and settings, shared by the seeds."""

    kept: dict[tuple[str, str, str], Evaluation] = field(default_factory=dict)


class Prepared:
    """A workload's model and data under one seed, and what is measured of them.

    Args:
        settings: The model and its data.
        seed: Seed of every draw.
        dense: Where evaluations of dense models are kept.
    """

    def __init__(self, settings: Settings, *, seed: int, dense: DenseCache) -> None:
        self.seed = seed
        self._dense_cache = dense
        model, data = settings
        self.model = load_model(model)
        self.data = load_data(data, self.model, seed=seed)
        device = default_device(self.model.module)
        self.forward = Forward(classes=self.data.classes, device=device)
        if self.model.task != "classification":
            self.forward = TokenForward(device=device)
        self.passes: dict[Needs, Cost] = {}
        self._shuffled_statistics: Statistics | None = None
        self.settings_hash = hash_of(
            [
                model.model_dump(mode="json", exclude={"model", "checkpoint", "factory", "device"}),
                data.model_dump(mode="json", exclude={"data"}),
            ]
        )
        self.data_hash = hash_of(
            [self.data.calibration.sha256, self.data.selection.sha256, self.data.test.sha256]
        )
        self.model_hash = self.model.sha256 or hash_of_weights(self.model.module)

    def measured(self, needs: Iterable[Needs]) -> Measurement:
        """Run one pass of each sort that is needed, and join what they gathered.

        The passes that fewer methods need only fill in what the others do not gather; a forward
        pass beside a backward one is there to tell what it costs alone. Over windows of tokens that
        would take long, and the backward pass's cost stands for it.
        """
        wanted = [kind for kind in get_args(Needs) if kind in set(needs)]
        wanted.sort(key=lambda kind: (kind != "gradients", kind == "weights"))
        found: Measurement | None = None
        for kind in wanted:
            if kind == "forward" and found is not None and isinstance(self.forward, TokenForward):
                self.passes[kind] = self.passes[wanted[0]]
                continue
            with metered() as cost:
                gathered = self._measure(kind)
            self.passes[kind] = cost
            found = gathered if found is None else _joined(found, gathered)
        if found is None:
            raise ValueError("no method is to be measured for")
        vars(found)["decompositions"] = SharedDecompositions(
            found, found.candidates.layers, found.layers
        )
        return found

    def under(self, measurement: Measurement, arm: Arm) -> Measurement:
        """Return the measurement as an arm is to see it: its control, and gradients or none."""
        if arm.control == PERMUTED:
            measurement = permuted(measurement)
        elif arm.control == SHUFFLED:
            measurement = with_shuffled_labels(measurement, self._shuffled(measurement))
        if measurement.gradients and not arm.gradients:
            without = replace(measurement, gradients=False)
            share_caches(measurement, without)
            return without
        return measurement

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the test split."""
        key = (self.model_hash, self.data.test.sha256, self.settings_hash)
        if key not in self._dense_cache.kept:
            self._dense_cache.kept[key] = evaluate(
                self.model.module, self.data.test, forward=self.forward
            )
        return self._dense_cache.kept[key]

    def run(self, measurement: Measurement, arm: Arm, budget: str) -> Figures:
        """Plan, factorize and evaluate one cell; the test split comes last and decides nothing.

        Raises:
            CompressorError: As the stages.
        """
        seen = self.under(measurement, arm)
        shared = measurement.decompositions
        assert isinstance(shared, SharedDecompositions)
        shared.begin()
        with metered() as planning:
            plan = arm.plan(seen, budget)
        made_planning = shared.made
        with metered() as factorizing:
            small = factorize(self.model.module, plan)
            round_to_storage_(small, self.model.storage_dtypes)
        used, made = shared.used, shared.made
        with metered() as evaluating:
            found = evaluate(
                small, self.data.test, forward=self.forward, dense_logits=self.dense.logits
            )
        assert found.kl_to_dense is not None
        assert found.agreement is not None
        layers = (plan.measurement or seen).candidates.layers
        kept = sum(layer.cost(plan.ranks[name]) for name, layer in layers.items())
        passed = self.passes[arm.needs]
        seconds = {
            "measure": passed.seconds,
            "decompose": used.seconds,
            "plan": planning.seconds - made_planning.seconds,
            "factorize": factorizing.seconds - (made.seconds - made_planning.seconds),
            "evaluate": evaluating.seconds,
        }
        return Figures(
            layer_share=kept / seen.candidates.layer_parameters,
            parameter_share=sum(p.numel() for p in small.parameters())
            / sum(p.numel() for p in self.model.module.parameters()),
            dense_accuracy=self.dense.accuracy,
            accuracy=found.accuracy,
            kl=found.kl_to_dense,
            agreement=found.agreement,
            **_perplexities(self.dense, found),
            choice=label(plan.recipe) + (", norms" if plan.recipe.norm_correction else ""),
            seconds={name: round(max(spent, 0.0), 3) for name, spent in seconds.items()},
            memory=_memory(passed, (planning, factorizing), used=used, made=made),
        )

    def _measure(self, needs: Needs) -> Measurement:
        method, gradients = next(
            (arm.method, arm.gradients) for arm in all_arms() if arm.method and arm.needs == needs
        )
        return measure(
            self.model.module,
            self.data.calibration,
            selection=self.data.selection if len(self.data.selection) else None,
            method=method,
            gradients=gradients,
            classes=len(self.data.class_names) or None,
            forward=self.forward,
            heads=self.model.heads,
            seed=self.seed,
        )

    def _shuffled(self, measurement: Measurement) -> Statistics:
        """Return what a pass over shuffled labels finds; made once."""
        if self._shuffled_statistics is None:
            self._shuffled_statistics = gather(
                self.model.module,
                ShuffledLabels(measurement.calibration, self.seed),
                measurement.candidates,
                classes=len(self.data.class_names) or None,
                forward=self.forward,
                gradients=False,
                seed=self.seed,
                progress=SILENT,
            )
        return self._shuffled_statistics


def _joined(first: Measurement, second: Measurement) -> Measurement:
    """Return the first measurement with what only the second one gathered."""
    if second.statistics is None:
        return first
    if first.statistics is None:
        return second
    layers = {
        name: replace(
            known,
            **{
                part.name: getattr(second.layers[name], part.name)
                for part in fields(known)
                if getattr(known, part.name) is None
            },
        )
        for name, known in first.layers.items()
    }
    energies = first.statistics.energies or second.statistics.energies
    return replace(first, statistics=replace(first.statistics, layers=layers, energies=energies))


def _perplexities(dense: Evaluation, found: Evaluation) -> dict[str, float]:
    """Return the perplexities of both, where tokens are predicted."""
    if found.tokens is None or found.loss is None or dense.loss is None:
        return {}
    return {"dense_perplexity": math.exp(dense.loss), "perplexity": math.exp(found.loss)}


def _memory(passed: Cost, steps: Iterable[Cost], *, used: Spent, made: Spent) -> int | None:
    """Return the peak that the method would have reached alone.

    What others had decomposed before is added, for alone it would have made that itself.
    """
    peaks = [step.memory for step in steps]
    if any(peak is None for peak in peaks):
        return None
    before = used.memory - made.memory
    return max(passed.memory or 0, before + max(peak or 0 for peak in peaks))
