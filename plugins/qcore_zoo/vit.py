"""Vision transformers: an image cut into patches that attend to each other.

A block is ``x + attention(norm(x))``, then ``x + mlp(norm(x))`` (pre-norm). Attention is written
out as two matrix products and a softmax, with one linear layer each for query, key and value.

References:
    Dosovitskiy et al., 2021, An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>
    Touvron et al., 2021, Training data-efficient image transformers (the size ViT-S)
    <https://arxiv.org/abs/2012.12877>
"""

from typing import Literal

import torch
from torch import nn

from qcore import RecipeError

__all__ = ["Attention", "Block", "Mlp", "VisionTransformer", "vit_small", "vit_tiny_28"]

Pool = Literal["class_token", "mean"]


class Attention(nn.Module):
    """Multi-head self-attention: ``softmax(q k^T / sqrt(d)) v`` in each head, then a linear layer.

    Args:
        dim: size of a token, a multiple of ``heads``.
        heads: number of heads; ``d = dim // heads``.

    Shapes: ``[N, T, dim] -> [N, T, dim]``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float((dim // heads) ** -0.5)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)
        self.project = nn.Linear(dim, dim)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        return x.reshape(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._by_head(layer(x)) for layer in (self.query, self.key, self.value)
        )
        weights = self.softmax(query @ key.transpose(-2, -1) * self.scale)
        x = self.project((weights @ value).transpose(1, 2).flatten(2))
        return x


class Mlp(nn.Module):
    """Two linear layers with GELU between them; ``[..., dim] -> [..., dim]``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc2(self.act(self.fc1(x)))
        return x


class Block(nn.Module):
    """Attention and an MLP on the normalised input, added to it; ``[N, T, dim] -> [N, T, dim]``."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class VisionTransformer(nn.Module):
    """A vision transformer with learned positions.

    Args:
        image_size: height and width of the images, a multiple of ``patch_size``.
        patch_size: height and width of a patch.
        dim: size of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads in a block.
        mlp_ratio: hidden size of the MLP over ``dim``.
        in_channels: channels of the images.
        num_classes: size of the output.
        pool: what the classifier sees: ``"class_token"``, a learned token put before the patches,
            or ``"mean"``, the mean of the patches.

    Shapes: images ``[N, in_channels, image_size, image_size]`` float32 -> logits
    ``[N, num_classes]``; ``T = (image_size / patch_size)**2`` tokens, one more with a class token.

    Raises:
        RecipeError: a size that does not divide as said above or is below 1, or an unknown pool.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        pool: Pool = "class_token",
    ) -> None:
        super().__init__()
        if min(image_size, patch_size, dim, heads, in_channels, num_classes) < 1 or depth < 0:
            raise RecipeError("VisionTransformer: a size is below 1; use positive sizes")
        if image_size % patch_size or dim % heads:
            raise RecipeError(
                f"VisionTransformer: patch_size={patch_size} must divide image_size={image_size} "
                f"and heads={heads} must divide dim={dim}"
            )
        if pool not in ("class_token", "mean"):
            raise RecipeError(f"VisionTransformer: pool={pool!r}; use 'class_token' or 'mean'")
        self.patch_embed = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        tokens = (image_size // patch_size) ** 2 + (pool == "class_token")
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class_token" else None
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        for parameter in (self.class_token, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.blocks(x + self.positions))
        x = self.head(x.mean(dim=1) if self.class_token is None else x[:, 0])
        return x


def vit_small(
    *, in_channels: int = 3, num_classes: int = 1000, image_size: int = 224
) -> VisionTransformer:
    """ViT-S/16: 12 blocks of 384 values and 6 heads, patches of 16 pixels, a class token.

    Args:
        in_channels: channels of the images.
        num_classes: size of the output.
        image_size: height and width of the images, a multiple of 16.

    >>> sum(p.numel() for p in vit_small().parameters())
    22050664
    """
    return VisionTransformer(
        image_size=image_size,
        patch_size=16,
        dim=384,
        depth=12,
        heads=6,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def vit_tiny_28(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    patch_size: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    pool: Pool = "class_token",
) -> VisionTransformer:
    """A vision transformer for images of 28x28, 49 patches of 4x4 pixels and a class token.

    Args:
        in_channels: channels of the images.
        num_classes: size of the output.
        patch_size: 2, 4, 7, 14 or 28.
        dim: size of a token.
        depth: number of blocks.
        heads: attention heads in a block.
        pool: ``"class_token"`` or ``"mean"``.

    >>> sum(p.numel() for p in vit_tiny_28().parameters())
    205066
    >>> vit_tiny_28(pool="mean").eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return VisionTransformer(
        image_size=28,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=4.0,
        in_channels=in_channels,
        num_classes=num_classes,
        pool=pool,
    )
