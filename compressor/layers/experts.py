"""The experts of a mixture taken apart: one pair of linear layers an expert.

transformers keeps all experts of a block in two 3-D parameters (``gate_up_proj``, or ``up_proj``
where nothing gates, and ``down_proj``), and marks the classes that do so by the attributes that
`ExpertsFusion` asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.layers.expert_linear import ExpertLinear, Routed
from compressor.layers.fused import FUSIONS, Unfused, linear_on, stacked


class Expert(nn.Module):
    """The layers of one expert.

    Args:
        widen: From the hidden size to the intermediate one, twice as wide where it holds a gate.
        down: Back to the hidden size.
    """

    def __init__(self, widen: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.widen, self.down = widen, down

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Return both, as they are now: dense or factorized."""
        return self.widen, self.down


class SeparateExperts(Unfused):
    """A block of experts, children ``0`` … ``E − 1``, each called on the tokens routed to it.

    An empty tensor keeps the name of the parameter that all experts shared, so that loading a
    checkpoint without this package fails on its size instead of starting from random experts.

    Args:
        experts: The module it replaces.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__(experts)
        self.first = "gate_up_proj" if experts.has_gate else "up_proj"
        self.gated: bool = experts.has_gate
        self.transposed: bool = experts.is_transposed
        self.biased: bool = experts.has_bias
        self.act_fn = getattr(experts, "act_fn", None)
        for number in range(len(experts.down_proj)):
            widen, down = (self._layer(experts, name, number) for name in (self.first, "down_proj"))
            self.add_module(str(number), Expert(widen, down))
        self.register_buffer(self.first, experts.down_proj.detach().new_empty(0))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts.

        Args:
            hidden_states: Tokens [T, D].
            top_k_index: Experts [T, k] of each token.
            top_k_weights: Their weights [T, k].
        """
        if torch.compiler.is_compiling():
            return self._traced(hidden_states, top_k_index, top_k_weights)
        total = torch.zeros_like(hidden_states)
        weights = top_k_weights.reshape(-1)
        for expert, places in self._chosen(top_k_index):
            tokens = places // top_k_index.shape[1]
            for layer in expert.layers():
                cast("ExpertLinear", layer).routed = Routed(tokens, len(hidden_states))
            out = self._run(expert, hidden_states[tokens]) * weights[places, None]
            total.index_add_(0, tokens, out.to(total.dtype))
        return total

    def fused(self) -> nn.Module:
        """Return the experts in two 3-D parameters."""
        parameters: dict[str, Tensor | None] = {}
        for name, at in ((self.first, 0), ("down_proj", 1)):
            layers = [expert.layers()[at] for expert in self._experts()]
            weight = stacked(cast("Tensor", layer.weight) for layer in layers)
            parameters[name] = weight.transpose(1, 2).contiguous() if self.transposed else weight
            if self.biased:
                parameters[f"{name}_bias"] = stacked(cast("Tensor", x.bias) for x in layers)
        return self._filled(parameters, {})

    def _layer(self, experts: Any, name: str, number: int) -> nn.Linear:
        weight = getattr(experts, name)[number]
        bias = getattr(experts, f"{name}_bias")[number] if self.biased else None
        return linear_on(weight.T if self.transposed else weight, bias, ExpertLinear)

    def _experts(self) -> list[Expert]:
        return [module for module in self.children() if isinstance(module, Expert)]

    def _run(self, expert: Expert, tokens: Tensor) -> Tensor:
        """Return what one expert makes of tokens [k, D]."""
        (shell,) = self._shell
        wide = expert.widen(tokens)
        narrow = cast("Any", shell)._apply_gate(wide) if self.gated else self.act_fn(wide)  # type: ignore[misc]
        return cast("Tensor", expert.down(narrow))

    def _chosen(self, top_k_index: Tensor) -> Iterator[tuple[Expert, Tensor]]:
        """Yield each expert with the places [k] in T·k that chose it.

        An expert that none chose is passed over, unless someone watches it: then it is called on
        no tokens, so that it is seen to be there.
        """
        experts = self._experts()
        if top_k_index.is_meta:  # shapes alone: as if tokens were spread evenly
            share = -(-top_k_index.numel() // len(experts))
            even = torch.arange(top_k_index.numel(), device="meta")
            yield from ((expert, even[:share]) for expert in experts)
            return
        chosen = top_k_index.reshape(-1)
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=len(experts))[: len(experts)].tolist()
        for expert, places in zip(experts, torch.split(order[: sum(counts)], counts), strict=True):
            if len(places) or any(layer._forward_hooks for layer in expert.layers()):
                yield expert, places

    def _traced(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Call every expert on every token: tracers follow no choice that depends on data."""
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self._experts()):
            weight = (weights * (index == number)).sum(1, keepdim=True)
            total = total + (self._run(expert, hidden_states) * weight).to(total.dtype)
        return total


class ExpertsFusion:
    """Modules that transformers marks as experts in 3-D parameters."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` holds experts [E, …] and nothing else."""
        marks = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "num_experts")
        if isinstance(module, Unfused) or not all(hasattr(module, mark) for mark in marks):
            return False
        if getattr(module, "has_post_expert_norm", False):
            return False
        first = "gate_up_proj" if module.has_gate else "up_proj"
        names = {first, "down_proj"}
        if module.has_bias:
            names |= {f"{name}_bias" for name in names}
        own = dict(module.named_parameters(recurse=False))
        return set(own) == names and all(own[name].ndim == 3 for name in (first, "down_proj"))

    def unfuse(self, module: nn.Module) -> Unfused:
        """Return SeparateExperts."""
        return SeparateExperts(module)


FUSIONS.register("experts")(ExpertsFusion())
