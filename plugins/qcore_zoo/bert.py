"""The encoder of BERT: tokens that attend to each other, normalised behind each residual.

A block is ``x = norm(x + attention(x))``, then ``x = norm(x + mlp(x))`` (post-norm). Tokens come in
as vectors, so that a network needs neither a vocabulary nor a mask, which take no part in what an
encoder costs.

References:
    Devlin et al., 2019, BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding <https://arxiv.org/abs/1810.04805>
"""

import torch
from torch import nn

from qcore import RecipeError

from .vit import Attention, Mlp

__all__ = ["BertEncoder", "PostNormBlock", "bert"]


class PostNormBlock(nn.Module):
    """Attention and an MLP, each added to its input and then normalised; ``[N, T, dim] -> [N, T,
    dim]``."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = Mlp(dim, hidden)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.mlp(x))
        return x


class BertEncoder(nn.Module):
    """Blocks over embedded tokens, which are normalised first, as BERT does.

    Args:
        depth: number of blocks.
        dim: size of a token, a multiple of ``heads``.
        heads: attention heads in a block.
        hidden: hidden size of the MLP.

    Shapes: embeddings ``[N, T, dim]`` float32, any ``T`` -> ``[N, T, dim]``.

    Raises:
        RecipeError: a size is below 1, or ``heads`` does not divide ``dim``.
    """

    def __init__(self, *, depth: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        if min(dim, heads, hidden) < 1 or depth < 0:
            raise RecipeError(
                f"BertEncoder: depth={depth}, dim={dim}, heads={heads}, hidden={hidden}; use "
                "positive sizes"
            )
        if dim % heads:
            raise RecipeError(f"BertEncoder: heads={heads} must divide dim={dim}")
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.Sequential(*(PostNormBlock(dim, heads, hidden) for _ in range(depth)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.norm(x))
        return x


def bert(
    *, depth: int = 12, dim: int = 768, heads: int = 12, hidden: int | None = None
) -> BertEncoder:
    """The encoder of BERT-base.

    Args:
        depth: number of blocks.
        dim: size of a token, a multiple of ``heads``.
        heads: attention heads in a block.
        hidden: hidden size of the MLP; by default ``4 * dim``.

    >>> sum(p.numel() for p in bert(depth=6).parameters())
    42528768
    >>> bert(depth=1, dim=12, heads=3).eval()(torch.zeros(2, 5, 12)).shape
    torch.Size([2, 5, 12])
    """
    return BertEncoder(
        depth=depth, dim=dim, heads=heads, hidden=4 * dim if hidden is None else hidden
    )
