"""Fitting the factors anew, layer after layer, on what the compressed layers before give.

A truncation is chosen for the inputs that the dense model gives a layer. In the compressed model
its inputs z' are others, and the errors of all layers add up. So each layer is solved for again, in
forward order, that its output comes near the dense one's:

    min Σ_t w_t ‖W z_t + b₀ − U V z'_t − b‖²_F

first in U, then in V, the bias b with both; w_t = ‖δ_t‖² is the size of the loss's gradient at the
row: what no prediction depends on does not count. Of language models w_t = ‖δ_t‖, for drift that
is not made good at one token is read by all that follow. U is the same in every metric F on the
outputs, V is taken in the Fisher's where it is known. Both are drawn towards the truncation's
factors by a ridge, a share of the mean diagonal of the inputs' moments about their mean, so that
few samples do little. (Inputs that drift: AA-SVD, arXiv 2604.02119; layer by layer, unweighted, in
closed form: Zhang et al., arXiv 1505.06798, eq. 9.)

Where a layer's output is added to a residual stream h, as attention and MLP of a transformer end
in, the stream has drifted too, and what is fitted to is W z_t + b₀ + h_t − h'_t: the layer gives
what brings the compressed stream back to the dense one, as far as its inputs tell, and errors are
made good block after block instead of adding up. Of language models this is done
(`compressor.methods.residuals` finds the streams), and V is fitted in these layers alone: what
tells the drift lies in other directions than those that the truncation kept. SmolLM2-135M at 60 %
of its layers' parameters, fitted to 64 windows of 512 tokens, perplexity over dense: 1.99 with U
alone, 1.86 with V of these layers, 1.88 with V of all. To 32 windows, U alone and weights ‖δ‖²:
2.02, and 2.19 where the stream's drift is left out; not refitted 2.21.

Both models run in one forward, the dense one on the first half of a batch and the compressed one on
the second, so that a layer meets both inputs at once. As many batches as their activations leave
room for run in lockstep: a layer is solved for on what all of them give it, before any goes on to
the next. Where there are more, they follow, and their moments are added to those before. Processes
share the batches, add up their moments at each layer, and solve for it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from compressor.calibration import probe_inputs
from compressor.collapse.row_energy import BatchEnergies
from compressor.distributed import Group
from compressor.forward import Batches, Forward, Inputs, chosen
from compressor.layers.candidates import Candidate
from compressor.layers.lowrank import LOW_RANK_TYPES, LowRankEmbedding
from compressor.layers.surgery import replace_module, structural_copy
from compressor.methods.aside import Aside
from compressor.methods.fitted_samples import fitted_samples
from compressor.methods.layer_fit import LayerFit
from compressor.methods.lockstep import Lockstep, groups
from compressor.methods.norms import NormCorrection, channel_moments, norms_of
from compressor.methods.residuals import first_rows, residual_sources
from compressor.methods.twins import Meet, Twin, doubled
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward

RIDGE = 0.2
"""KL on test data with ridges of .1 and .3, and without the refit: MiniLM/R52 at 12 % of the
layers' parameters .0207, .0221, .0577; at 40 % .0034, .0032, .0050; a ResNet-20 at 50 % .0567,
.0563, .0751; EfficientNet-Lite0 at 80 % .345, .337, .329."""

SAMPLES = 1024
"""Calibration samples that are fitted to."""

TOKENS = 1 << 15
"""Tokens of calibration windows that are fitted to. SmolLM2-135M at 60 % of its layers' parameters:
perplexity over dense 2.02 with 16,384 of them, 1.99 with 32,768."""

LEFT_OUT = 0.05
"""Share of a classifier's weights w_t that the samples may have together that are not run, and of
each batch's that the rows may have that are not multiplied. MiniLM/R52, KL on the quarter of the
test data that holds most of it, at 40 and 12 % of the layers' parameters: .0032 and .0219 with .02,
.0033 and .0224 with .05, .0036 and .0249 with .1, in 23, 17 and 12 seconds."""

ACTIVATIONS = 14 << 24
"""Bytes of inputs and outputs of the widest layer that a classifier's batches in lockstep may hold
together. With all else in memory then, a refit of MiniLM to 1,024 texts stays below 1 GB."""

WINDOW_ACTIVATIONS = 1 << 28
"""The same of windows of tokens, which are fitted to in fewer groups so: what a group gives a layer
was made by layers that had not seen the groups after it. SmolLM2-135M at 80 % of its layers'
parameters: KL .237 with 9 << 24, and .235 with 1 << 28 by an earlier version of the code."""

BLOCKWISE_ACTIVATIONS = 1 << 26
"""The same where a model is measured block by block, for memory's sake: about 8 windows of 512
tokens of SmolLM2-135M, each of which takes some 22 MiB while layers wait for each other."""

MOMENTS = 1 << 30
"""Bytes that the moments of all layers' inputs may take together, on disk where batches come in
several groups. The first factors of the layers that would take the most stay as they are where
there is no room for all."""


def refitted(
    dense: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, Candidate],
    batches: Batches,
    energies: Sequence[BatchEnergies],
    *,
    forward: Forward,
    metrics: Callable[[str], Tensor | None] | None = None,
    ridge: float = RIDGE,
    norms: bool = False,
    activations: int | None = None,
    left_out: float = LEFT_OUT,
    progress: Progress = SILENT,
) -> nn.Module:
    """Return a copy of ``compressed`` whose factors and biases fit the inputs they get.

    Args:
        dense: The dense model, in eval mode.
        compressed: It, factorized, its BatchNorm statistics as they were.
        layers: The candidates by name.
        batches: Calibration batches; the labels are not looked at.
        energies: Of the rows of the first batches, that are fitted to; layers
            without energies stay as they are.
        forward: How to call both models.
        metrics: Gives the metric F [m, m] on a layer's outputs, or None for the identity.
        ridge: λ over the mean diagonal of the moments that are inverted.
        norms: Correct BatchNorm statistics relative to the dense model in the same pass.
        activations: Bytes that batches in lockstep may hold together; None is the default of the
            sort of model.
        left_out: Share of the weights that samples and rows may have together that are left out.
            Language models, and samples where BatchNorm is corrected, are taken whole.
        progress: Told of each group of batches.

    Raises:
        LayerError: If a layer's outputs or their gradients hold NaN or Inf.
    """
    fitted = structural_copy(compressed).eval()
    twins = structural_copy(dense).eval()
    modules = dict(fitted.named_modules())
    known = energies[0].energies if energies else {}  # the first process has the first batch
    names = [name for name in known if isinstance(modules[name], LOW_RANK_TYPES)]
    processes = forward.group
    names = processes.told(names)
    if not names:
        return fitted
    tokens = isinstance(forward, TokenForward)
    current = _Current()
    left_out = 0.0 if tokens else left_out
    if activations is None:
        activations = WINDOW_ACTIVATIONS if tokens else ACTIVATIONS
    samples = fitted_samples(energies, names, 0.0 if norms else left_out)
    sources: dict[str, str] = {}
    if tokens:
        probe = probe_inputs(batches, forward.device)
        sources = residual_sources(dense, names, partial(forward, dense, probe))
    # Of language models where there is drift to be made good: elsewhere it fits the corpus.
    whole = _with_room([name for name in names if name in sources or not tokens], layers)
    fits = {
        name: LayerFit(
            name,
            layers[name],
            dense.get_submodule(name),
            modules[name],
            ridge=ridge,
            metric=None if metrics is None else partial(metrics, name),
            both=name in whole,
            group=processes,
            left_out=left_out,
        )
        for name in names
    }
    aside = Aside(fits[names[0]].home, progress)
    meetings = {
        name: _fitting(fit, name, current, aside, root=tokens) for name, fit in fits.items()
    }
    for name, module in modules.items():
        if isinstance(module, LowRankEmbedding):  # indices do not drift
            meetings[name] = lambda first, second, expected: None
    if norms:
        for name in norms_of(twins):
            meetings[name] = _correcting(NormCorrection(modules[name]), current, processes)
    for name, meet in meetings.items():
        replace_module(twins, name, Twin(twins.get_submodule(name), modules[name], meet))
    for name, source in sources.items():
        _noting(twins.get_submodule(source), name, current)
    given = (
        inputs if index is None else chosen(inputs, index)
        for index, (inputs, _) in zip(samples, batches, strict=False)
        if index is None or len(index)
    )
    energies = [
        batch.of(index)
        for batch, index in zip(energies, samples, strict=True)
        if index is None or len(index)
    ]
    first = next(given)
    remaining = chain([first], given)
    rows = [_rows(batch) for batch in energies]
    per_row = _held_bytes(dense, list(meetings), first, forward=forward) / rows[0]
    room = groups(rows, int(activations / max(per_row, 1)))
    for group in progress.track(room, description="refit", total=len(room)):
        together = list(islice(remaining, len(energies[group])))
        # A process with none of its own runs one along, so that it comes to the same meetings.
        mine = [index for index in range(*group.indices(len(energies))) if processes.takes(index)]
        current.take(
            [energies[index] for index in mine or [group.start]],
            along=not mine,
            last=group.stop == len(energies),
        )
        together = [together[index - group.start] for index in mine or [group.start]]

        def one(together: list[Inputs] = together) -> None:
            forward(twins, doubled(together[current.lockstep.index]))

        with torch.no_grad():  # around all: each one's own would end among the others'
            current.lockstep.run(one)
    for fit in fits.values():
        fit.solve()
    return fitted


def samples_to_fit(batches: Batches) -> int:
    """Return how many samples are fitted to: fewer windows of tokens the longer they are."""
    labels = next((labels for _, labels in batches), None)
    if labels is None or labels.ndim < 2:
        return SAMPLES
    return max(1, TOKENS // labels.shape[1])


def can_refit(layers: Mapping[str, Candidate]) -> bool:
    """Return whether every layer gets the dense rows in the first half of a doubled batch.

    Experts of a mixture do not: both models' tokens are routed apart.
    """
    return all(layer.kind != "expert" for layer in layers.values())


def _with_room(names: Sequence[str], layers: Mapping[str, Candidate]) -> frozenset[str]:
    """Return those, the smallest first, whose moments fit into `MOMENTS` together."""
    sizes = {name: 8 * n * (m + n) for name in names for m, n in [layers[name].shape]}
    smallest = sorted(sizes, key=sizes.__getitem__)
    room = accumulate(sizes[name] for name in smallest)
    return frozenset(name for name, total in zip(smallest, room, strict=True) if total <= MOMENTS)


def _rows(batch: BatchEnergies) -> int:
    """Return how many rows a batch has where a layer has the most: texts are of unlike lengths."""
    return max(calls[0].numel() for calls in batch.energies.values())


def _held_bytes(model: nn.Module, names: Sequence[str], inputs: Inputs, *, forward: Forward) -> int:
    """Return the bytes of inputs and outputs of the widest module, in both models together."""
    modules = dict(model.named_modules())
    held = [0]

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        del module
        held[0] = max(held[0], 2 * (args[0].nbytes + output.nbytes))

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hooks.callback(modules[name].register_forward_hook(hook).remove)
        forward(model, inputs)
    return held[0]


class _Current:
    """The batches in lockstep, and which of their rows' energies were asked for."""

    def __init__(self) -> None:
        self._batches: Sequence[BatchEnergies] = ()
        self._calls: list[dict[str, int]] = []
        self._drifts: list[dict[str, Tensor]] = []
        self.lockstep = Lockstep(0)
        self.along = self.last = False

    def take(
        self, batches: Sequence[BatchEnergies], *, along: bool = False, last: bool = False
    ) -> None:
        """Go on with other batches.

        Args:
            batches: They.
            along: Whether they are another process's, which counts them.
            last: Whether no others will follow.
        """
        self.last = last
        self._batches, self.lockstep, self.along = batches, Lockstep(len(batches)), along
        self._calls = [{} for _ in batches]
        self._drifts = [{} for _ in batches]

    @property
    def batch(self) -> BatchEnergies:
        """The one whose turn it is."""
        return self._batches[self.lockstep.index]

    def energies(self, name: str) -> Tensor:
        """Return the energies of the rows of a layer's next call."""
        calls = self._calls[self.lockstep.index]
        calls[name] = calls.get(name, -1) + 1
        return self.batch.energies[name][calls[name]]

    def finished(self, name: str) -> bool:
        """Return whether a layer will not be called any more."""
        calls = self._calls[self.lockstep.index].get(name, -1) + 1
        return self.last and calls == len(self.batch.energies[name])

    def note_drift(self, name: str, drift: Tensor) -> None:
        """Keep h − h' of the stream that a layer's output is added to, until it is asked for."""
        self._drifts[self.lockstep.index][name] = drift

    def drift(self, name: str) -> Tensor | None:
        """Return it; None for a layer that writes into no stream."""
        return self._drifts[self.lockstep.index].pop(name, None)


def _fitting(fit: LayerFit, name: str, current: _Current, aside: Aside, *, root: bool) -> Meet:
    def meet(first: Tensor, second: Tensor, expected: Tensor) -> None:
        del first
        batch, drift = current.batch, current.drift(name)
        fit.take_back(aside)
        if not current.along:
            wanted = expected if drift is None else expected + drift
            weights = current.energies(name)
            fit.add(second, wanted, batch.samples, weights.sqrt() if root else weights, batch.mask)
        current.lockstep.meet(settle)

    def settle() -> None:
        fit.solve()
        if current.finished(name):
            fit.forget()
        else:
            fit.set_aside(aside)

    return meet


def _noting(source: nn.Module, name: str, current: _Current) -> None:
    """Note, whenever a module of the twins is called, the drift of what it is given."""

    def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        rows = first_rows(args, kwargs)
        assert rows is not None
        dense, compressed = rows.chunk(2)
        current.note_drift(name, dense - compressed)

    source.register_forward_pre_hook(pre, with_kwargs=True)


def _correcting(correction: NormCorrection, current: _Current, processes: Group) -> Meet:
    def meet(first: Tensor, second: Tensor, expected: Tensor) -> None:
        del expected
        if not current.along:
            correction.meet(channel_moments(first), channel_moments(second))
        current.lockstep.meet(lambda: correction.join_(processes))

    return meet
