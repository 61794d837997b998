"""Why a module with weight matrices that no layer kind takes is left dense."""

from __future__ import annotations

from torch import nn

from compressor.layers.kinds import kind_of
from compressor.layers.lowrank import LOW_RANK_TYPES

_REASONS: dict[type[nn.Module], str] = {
    nn.RNNBase: "its gates are stacked in one matrix that a fused kernel reads at every step",
    nn.RNNCellBase: "its gates are stacked in one matrix that a fused kernel reads at every step",
    nn.MultiheadAttention: "its parent reads its parameters, or it adds keys of its own",
    nn.ConvTranspose1d: "transposed convolution",
    nn.ConvTranspose2d: "transposed convolution",
    nn.ConvTranspose3d: "transposed convolution",
    nn.Conv3d: "3-D convolution",
    nn.Bilinear: "it multiplies two inputs by one 3-D parameter",
}
_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


def unsupported(model: nn.Module) -> dict[str, str]:
    """Return why each module with weights of its own is left dense, where no layer kind takes it.

    Lookup tables, norms and loose parameters (position tables, class tokens) multiply nothing by a
    matrix and are not listed.

    Args:
        model: Any model.

    Returns:
        Reasons by module name, in the order of the modules.
    """
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LOW_RANK_TYPES) or kind_of(module) is not None:
            continue
        reason = _reason(module)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _reason(module: nn.Module) -> str | None:
    for base, reason in _REASONS.items():
        if isinstance(module, base):
            return f"{type(module).__name__}: {reason}"
    if isinstance(module, _LOOKUPS):
        return None
    own = dict(module.named_parameters(recurse=False))
    for name, parameter in own.items():
        # A table of positions or a class token is [1, N, D]; experts are [experts, out, in].
        if parameter.ndim == 3 and min(parameter.shape) > 1:
            return f"{name} is one 3-D parameter for all of {len(parameter)} experts"
    weight = own.get("weight")
    if weight is not None and weight.ndim > 1 and min(weight.shape[:2]) > 1:
        return f"{type(module).__name__} computes its own forward"
    return None
