"""Finding the layers that can be factorized, and saying of every other one why it stays dense."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError, did_you_mean
from compressor.forward import Inputs, batch_length, call, logits_of
from compressor.layers.candidates import Candidate, Candidates, ConvForm, Form, specs_of
from compressor.layers.kinds import LayerKind, folding_kinds, kind_of
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import culprits, install, structural_copy
from compressor.layers.unsupported import unsupported
from compressor.schema import ALREADY_FACTORIZED

EMBEDDING = "embedding: a table of rows (--include embeddings)"

SMALLEST_SIDE = 16
"""A layer with fewer rows or columns than this is left dense by default."""

EMBEDDINGS = "embeddings"
"""Included by this word: lookup tables, and the layers that make logits over their vocabulary."""

POOLER = re.compile(r"(^|\.)pooler(\.|$)")


def find_candidates(
    model: nn.Module,
    probe: Inputs,
    *,
    heads: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    conv_form: ConvForm = "channel",
) -> Candidates:
    """Find every layer of ``model`` that can be factorized.

    A layer is left dense by default if it makes the logits, looks up rows, is a pooler, or is tiny;
    and always if it is of a type without a useful rank, if its weight is shared with another module
    (which would keep it), if its forward is never called, or if the model does not run with it
    factorized, because its parent reads the weight directly. An embedding that shares its table
    with output layers alone is factorized together with them.

    Args:
        model: The dense model, in eval mode; meta tensors will do where its forward runs on them.
        probe: Inputs of at least two samples, for two forwards.
        heads: Names of modules that make the logits, as far as the model's source knows them.
        include: Shell-style patterns of layers to take though they would be left by default;
            `EMBEDDINGS` takes embeddings and output layers over the same vocabulary.
        exclude: Shell-style patterns of layers to leave dense.
        conv_form: Form of convolutions with a kernel over two axes; ``auto`` gives them both, and
            channel form until another is chosen.

    Raises:
        UsageError: If a pattern matches no layer.
    """
    modules = {
        name: (module, kind) for name, module in model.named_modules() if (kind := kind_of(module))
    }
    _require_matches((*include, *exclude), modules)
    seen = _watch(model, modules, probe)
    shared = _shared_weights(model)
    if EMBEDDINGS in include:
        include = (*include, *_vocabulary(modules, seen))
    layers: dict[str, Candidate] = {}
    left = {
        name: ALREADY_FACTORIZED
        for name, module in model.named_modules()
        if isinstance(module, LOW_RANK_TYPES)
    }
    inside = tuple(f"{name}." for name in left)
    left |= unsupported(model)
    modules = {name: entry for name, entry in modules.items() if not name.startswith(inside)}
    for name, (module, kind) in modules.items():
        reason = kind.refusal(module) or _unreached(seen.calls.get(name))
        tied: tuple[str, ...] = ()
        if reason is None and any(shared[id(p)] > 1 for p in module.parameters(recurse=False)):
            reason = "its weight is shared with another module"
            if kind.lookup and _matches(name, include):
                others = _sharing(model, name)
                makers = [o for o in others if o in seen.makes_logits and not _matches(o, exclude)]
                if makers == others:
                    tied, reason = tuple(makers), None
                else:
                    reason = _added(module, kind, others)
        if reason is None and _matches(name, exclude):
            reason = "excluded"
        if reason is None and not _matches(name, include):
            head = name in seen.makes_logits or _is_below(name, heads)
            reason = _default_reason(name, kind.shape(module))
            reason = "classifier head" if head else EMBEDDING if kind.lookup else reason
        if reason is not None:
            left[name] = reason
            continue
        call_seen = seen.calls[name]
        layers[name] = Candidate(
            name=name,
            kind=kind.name,
            shape=kind.shape(module),
            has_bias=getattr(module, "bias", None) is not None,
            group=seen.first_alike(name),
            positions=call_seen.rows / seen.samples,
            tied=tuple(tied),
            others=call_seen.forms if conv_form != "channel" else (),
        )
        if conv_form == "spatial" and layers[name].others:
            form = layers[name].others[0].kind
            layers[name] = replace(layers[name].in_form(form), others=())
        for other in tied:
            left.pop(other, None)
    left = {n: r for n, r in left.items() if not any(n in c.tied for c in layers.values())}
    for name in _rejected_by_parents(model, probe, layers):
        left[name] = "its parent reads the weight directly"
        del layers[name]
    layers = _in_call_order(_regroup(layers, seen), seen)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    left = dict(sorted(left.items(), key=lambda item: order[item[0]]))
    return Candidates(layers, left, sum(p.numel() for p in model.parameters()))


@dataclass
class _Call:
    """What the probe saw of one module's calls."""

    rows: int = 0
    problem: str | None = None
    inputs: list[Hashable] = field(default_factory=list)
    forms: tuple[Form, ...] = ()


@dataclass
class _Seen:
    """What the probe forward saw."""

    samples: int
    calls: dict[str, _Call] = field(default_factory=dict)
    makes_logits: set[str] = field(default_factory=set)

    def first_alike(self, name: str) -> str:
        """Return the first layer that was called on the same rows as ``name``, call by call."""
        inputs = self.calls[name].inputs
        return next(other for other, seen in self.calls.items() if seen.inputs == inputs)


def _watch(
    model: nn.Module, modules: dict[str, tuple[nn.Module, LayerKind]], probe: Inputs
) -> _Seen:
    """Run one forward, noting which modules are called, on which tensors, with how many rows."""
    seen = _Seen(samples=batch_length(probe))
    outputs: list[tuple[str, int, Tensor]] = []
    alive: list[Tensor] = []  # an id stays unique only as long as its tensor lives

    def hook(name: str, module: nn.Module, kind: LayerKind) -> Any:
        others = folding_kinds(module)

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            entry = seen.calls.setdefault(name, _Call())
            if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                entry.problem = "it is not called on one tensor"
                return
            rows = kind.rows(module, args[0], seen.samples)
            if rows is None:
                entry.problem = "its input rows do not belong to samples"
                return
            entry.forms = tuple(
                Form(other.name, other.folded(module), other.inner_rows(module, args[0], output))
                for other in others
            )
            alive.append(args[0])
            reached = kind.reached(module)
            entry.rows += (
                kind.all_output_rows(module, output, seen.samples).shape[1] * seen.samples
                if reached is None
                else len(reached)
            )
            # What is written into a tensor in place raises its version: other rows from then on.
            # Inference tensors count no versions, so that theirs are never taken to be shared.
            version = -len(alive) if args[0].is_inference() else args[0]._version
            entry.inputs.append((id(args[0]), version, kind.sharing(module)))
            outputs.append((name, kind.shape(module)[0], output))

        return note

    handles = [
        module.register_forward_hook(hook(name, module, kind))
        for name, (module, kind) in modules.items()
    ]
    try:
        with torch.no_grad():
            logits = logits_of(call(model, probe))
    finally:
        for handle in handles:
            handle.remove()
    seen.makes_logits = _makers_of(logits, outputs)
    return seen


def _makers_of(logits: Tensor, outputs: list[tuple[str, int, Tensor]]) -> set[str]:
    """Return the layers that make the logits, from (name, width m, output) of each call in order.

    Where no output is the logits themselves, because the model picks a token, pools positions,
    averages two heads or takes a log-softmax, they are the last layers called that are as wide.
    """
    makers = {name for name, _, output in outputs if output is logits}
    if not makers:
        for name, width, _ in reversed(outputs):
            if width != logits.shape[-1]:
                break
            makers.add(name)
    return makers


def _unreached(call_seen: _Call | None) -> str | None:
    if call_seen is None:
        return "its forward is never called: the parent reads the weight directly, or skips it"
    return call_seen.problem


def _vocabulary(modules: dict[str, tuple[nn.Module, LayerKind]], seen: _Seen) -> tuple[str, ...]:
    """Return the lookup tables, and the layers that make logits over a vocabulary of theirs."""
    tables = {name: kind.shape(m)[1] for name, (m, kind) in modules.items() if kind.lookup}
    outputs = (
        name
        for name in seen.makes_logits
        if modules[name][1].shape(modules[name][0])[0] in tables.values()
    )
    return (*tables, *outputs)


def _sharing(model: nn.Module, name: str) -> list[str]:
    """Return the other modules that hold the weight of the one called ``name``."""
    weight = model.get_submodule(name).weight
    return [
        other
        for other, module in model.named_modules()
        if other != name and any(p is weight for p in module.parameters(recurse=False))
    ]


def _added(module: nn.Module, kind: LayerKind, others: Sequence[str]) -> str:
    """Return why a shared table is not factorized alone, with the arithmetic."""
    rows, columns = kind.shape(module)
    return (
        f"its {columns:,}×{rows:,} weight is shared with {', '.join(others)}, which would keep it: "
        f"rank r would add {rows + columns:,}·r weights and free none"
    )


def _is_below(name: str, parents: Sequence[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _default_reason(name: str, shape: tuple[int, int]) -> str | None:
    """Return why a layer that is no head is left dense unless --include names it, or None."""
    if POOLER.search(name):
        return "pooler"
    if min(shape) < SMALLEST_SIDE:
        return f"tiny ({shape[0]}×{shape[1]})"
    return None


def _shared_weights(model: nn.Module) -> dict[int, int]:
    """Count under how many names each parameter stands, modules under two names included."""
    return Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))


def _rejected_by_parents(
    model: nn.Module, probe: Inputs, layers: dict[str, Candidate]
) -> list[str]:
    """Return the candidates without which the model runs factorized: a forward at rank 1."""
    rejected: list[str] = []
    while True:
        specs = {
            part: spec
            for name, layer in layers.items()
            if name not in rejected
            for part, spec in specs_of(model, layer, 1).items()
        }
        trial = structural_copy(model)
        install(trial, specs)
        try:
            with torch.no_grad():
                call(trial, probe)
        except Exception as error:  # any error at all means that a layer must stay
            found = culprits(trial, error, specs)
            if not found:
                raise
            owners = {head: layer.name for layer in layers.values() for head in layer.tied}
            rejected += [owners.get(name, name) for name in found]
        else:
            return rejected


def _regroup(layers: dict[str, Candidate], seen: _Seen) -> dict[str, Candidate]:
    """Let each group be led by its first remaining candidate."""
    leaders: dict[str, str] = {}
    for name in seen.calls:
        if name in layers:
            leaders.setdefault(layers[name].group, name)
    return {name: replace(layer, group=leaders[layer.group]) for name, layer in layers.items()}


def _in_call_order(layers: dict[str, Candidate], seen: _Seen) -> dict[str, Candidate]:
    return {name: layers[name] for name in seen.calls if name in layers}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_matches(
    patterns: Sequence[str], modules: dict[str, tuple[nn.Module, LayerKind]]
) -> None:
    names = list(modules)
    for pattern in patterns:
        if pattern == EMBEDDINGS and any(kind.lookup for _, kind in modules.values()):
            continue
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"The pattern {pattern!r} matches no layer.{did_you_mean(pattern, names)}"
            )
