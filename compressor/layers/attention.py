"""nn.MultiheadAttention taken apart: projections of query, key, value and output as layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.fused import FUSIONS, Unfused, linear_on

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Absent(Tensor):
    """A tensor of a type that torch's fused paths do not take."""


class SeparateAttention(Unfused):
    """What nn.MultiheadAttention computes, with four linear layers that are called as layers.

    torch's encoder layers take their fused path only where ``in_proj_bias`` is there, and encoders
    nest padded inputs only where ``in_proj_weight`` is a plain tensor. Here neither is so: the
    layers are called one by one, and their neighbours ``linear1`` and ``linear2`` with them.

    Args:
        attention: The module it replaces.
    """

    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention, without=("out_proj",))
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        weights: list[Tensor]
        if attention._qkv_same_embed_dim:
            weights = list(attention.in_proj_weight.chunk(3))
        else:
            weights = [getattr(attention, f"{name}_weight") for name in PROJECTIONS]
        stacked_bias = attention.in_proj_bias
        biases = [None] * 3 if stacked_bias is None else stacked_bias.chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            self.add_module(name, linear_on(weight, bias))
        self.out_proj = linear_on(attention.out_proj.weight, attention.out_proj.bias)

    @property
    def in_proj_weight(self) -> Tensor:
        """An empty tensor: there is no such matrix any more."""
        return self.out_proj.weight.detach().new_empty(0).as_subclass(Absent)

    def forward(  # noqa: PLR0917  # the signature it stands in for
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as nn.MultiheadAttention does; see there for shapes and masks."""
        batched = query.ndim == 3
        given = query, key, value
        ready = {id(t): _batch_first(t, batched, self.batch_first) for t in given}
        q, k, v = (  # (B, heads, T or S, head_dim)
            self._heads(getattr(self, name)(ready[id(tensor)]))
            for name, tensor in zip(PROJECTIONS, given, strict=True)
        )
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal and attn_mask is None)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
            weights = (scores if mask is None else scores + mask).softmax(3)
            weights = functional.dropout(weights, dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _heads(self, projected: Tensor) -> Tensor:
        """Return [B, T, E] as [B, heads, T, head_dim]."""
        return projected.reshape(*projected.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None, causal: bool
    ) -> Tensor | None:
        """Return what is added to the scores [B, heads, T, S], or None."""
        if causal:
            attention = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            attention = attention.triu(1)
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.ndim == 3:  # (B·heads, T, S)
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        if padding is not None:
            columns = _additive(padding, q.dtype).reshape(-1, 1, 1, k.shape[2])
            mask = columns if mask is None else mask + columns
        return mask

    def fused(self) -> nn.Module:
        """Return the nn.MultiheadAttention."""
        layers = [getattr(self, name) for name in PROJECTIONS]
        weights = [layer.weight.detach() for layer in layers]
        (shell,) = self._shell
        assert isinstance(shell, nn.MultiheadAttention)
        separate = not shell._qkv_same_embed_dim
        bias = layers[0].bias
        parameters: dict[str, Tensor | None] = {
            **{
                f"{name}_weight": weight if separate else None
                for name, weight in zip(PROJECTIONS, weights, strict=True)
            },
            "in_proj_weight": None if separate else torch.cat(weights),
            "in_proj_bias": None if bias is None else torch.cat([x.bias for x in layers]),
            "bias_k": None,
            "bias_v": None,
        }
        out = nn.modules.linear.NonDynamicallyQuantizableLinear(
            self.embed_dim, self.embed_dim, self.out_proj.bias is not None, device="meta"
        )
        out.weight, out.bias = self.out_proj.weight, self.out_proj.bias
        return self._filled(parameters, {"out_proj": out})


class AttentionFusion:
    """nn.MultiheadAttention itself; subclasses may read its parameters in ways of their own."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is a plain one without extra keys."""
        return (
            type(module) is nn.MultiheadAttention
            and module.bias_k is None
            and not module.add_zero_attn
        )

    def unfuse(self, module: nn.Module) -> Unfused:
        """Return a SeparateAttention."""
        assert isinstance(module, nn.MultiheadAttention)
        return SeparateAttention(module)


def _batch_first(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """Return [B, T, E]: rows are then sorted by sample for whoever watches the layers."""
    if not batched:
        return tensor[None]
    return tensor if batch_first else tensor.transpose(0, 1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores; True says that a place is not attended to."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


FUSIONS.register("multihead-attention")(AttentionFusion())
