"""nn.Embedding as a layer kind: a table of V rows becomes a table of thinner rows and a product.

ALBERT (Lan et al., arXiv 1909.11942, section 3.1) trains embeddings in this form.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.kinds import LAYER_KINDS, computed_weight, product, write_dense
from compressor.layers.lowrank import LowRankEmbedding


class EmbeddingKind:
    """Lookup tables; rows are one-hot vectors [V] of the indices, W [D, V] is the table turned."""

    name = "embedding"
    lookup = True

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` computes exactly what nn.Embedding computes."""
        return (
            isinstance(module, nn.Embedding)
            and not isinstance(module, LowRankEmbedding)
            and type(module).forward is nn.Embedding.forward
        )

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse tables that are computed, or rescaled as they are read."""
        if _table(module).max_norm is not None:
            return "its rows are rescaled when they are read (max_norm)"
        return computed_weight(module)

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (embedding_dim D, num_embeddings V)."""
        return _table(module).embedding_dim, _table(module).num_embeddings

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the table turned, [D, V]."""
        return _table(module).weight.detach().T

    def reached(self, module: nn.Module) -> Tensor | None:
        """Return None: it is called on every index."""
        del module
        return None

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return indices [..., ] as one-hot rows [samples, P, V]: for probes, V is large."""
        if inputs.ndim < 1 or not inputs.shape[0] or inputs.shape[0] % samples:
            return None
        return self.all_rows(module, inputs, samples)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return indices as one-hot rows [samples, P, V]."""
        table = _table(module)
        hot = functional.one_hot(inputs.reshape(samples, -1), table.num_embeddings)
        return hot.to(table.weight.dtype)

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [..., D] as [samples, P, D]."""
        del module
        return outputs.reshape(samples, -1, outputs.shape[-1])

    all_output_rows = output_rows

    def sharing(self, module: nn.Module) -> Hashable:
        """Tables of one length see the same one-hot rows."""
        return ("lookup", _table(module).num_embeddings)

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return an unfilled LowRankEmbedding.

        Raises:
            ValueError: If it shall have a bias, which lookups have not.
        """
        if bias:
            raise ValueError("an embedding has no bias")
        table = _table(module)
        lowrank = LowRankEmbedding(
            table.num_embeddings,
            table.embedding_dim,
            rank,
            padding_idx=table.padding_idx,
            device=table.weight.device,
            dtype=table.weight.dtype,
        )
        lowrank.kind = self.name
        return lowrank

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [D, r] and down [r, V]."""
        assert isinstance(lowrank, LowRankEmbedding)
        assert bias is None
        with torch.no_grad():
            lowrank.up.weight.copy_(up)
            lowrank.weight.copy_(down.T)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (up.weight [D, r], the table turned [r, V])."""
        assert isinstance(lowrank, LowRankEmbedding)
        return lowrank.up.weight.detach(), lowrank.weight.detach().T

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return an nn.Embedding with the factors' product."""
        assert isinstance(lowrank, LowRankEmbedding)
        table = nn.Embedding(
            lowrank.num_embeddings,
            lowrank.up.out_features,
            padding_idx=lowrank.padding_idx,
            device=lowrank.weight.device,
            dtype=lowrank.weight.dtype,
        )
        return write_dense(table, product(*self.factors(lowrank)).T, None)


def _table(module: nn.Module) -> nn.Embedding:
    assert isinstance(module, nn.Embedding)
    return module


LAYER_KINDS.register("embedding")(EmbeddingKind())
