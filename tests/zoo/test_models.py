"""Models of the zoo: shapes, parameter counts, determinism, and what their options refuse."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

import qcore
from qcore import RecipeError
from qcore_zoo.bert import bert
from qcore_zoo.mobilenet import InvertedResidual, mobilenet_v2
from qcore_zoo.resnet import (
    BasicBlock,
    Bottleneck,
    IdentityShortcut,
    resnet18,
    resnet20,
    resnet50,
)
from qcore_zoo.vit import Attention, VisionTransformer, vit_small, vit_tiny_28

Build = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("build", "options", "images", "parameters"),
    [
        (resnet18, {"width": 8, "num_classes": 9}, (3, 64, 64), None),
        (resnet18, {"in_channels": 1, "num_classes": 10, "stem": "small"}, (1, 8, 8), 11_172_810),
        (resnet20, {"num_classes": 10}, (3, 32, 32), 272_474),
        (resnet20, {"num_classes": 10, "shortcut": "identity"}, (3, 28, 28), 269_722),
        (resnet50, {"width": 4, "num_classes": 7}, (3, 33, 47), None),
        (mobilenet_v2, {"num_classes": 10}, (3, 64, 64), 2_236_682),
        (mobilenet_v2, {"num_classes": 4, "width": 0.35, "stem": "small"}, (3, 28, 28), None),
        (vit_tiny_28, {"num_classes": 10}, (1, 28, 28), 205_066),
        (vit_tiny_28, {"patch_size": 7, "pool": "mean", "num_classes": 3}, (1, 28, 28), None),
        (vit_small, {"image_size": 32, "num_classes": 5}, (3, 32, 32), None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_shape_and_parameters(
    build: Build, options: dict[str, Any], images: tuple[int, ...], parameters: int | None
) -> None:
    """Logits have one row an image, and each image's row does not depend on the others."""
    torch.manual_seed(0)
    model = build(**options).eval()
    batch = torch.randn(3, *images)
    with torch.no_grad():
        logits = model(batch)
        alone = model(batch[1:2])
    assert logits.shape == (3, options["num_classes"])
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-3, atol=1e-4)
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("build", [resnet20, mobilenet_v2, vit_tiny_28])
def test_seed_decides_the_weights(build: Build) -> None:
    """The same seed builds the same weights, another seed others."""
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build().parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("build", [resnet18, resnet20, resnet50, mobilenet_v2])
def test_initial_activations_keep_their_size(build: Build) -> None:
    """Fresh convolutional networks neither kill nor blow up a signal in training mode."""
    torch.manual_seed(0)
    logits = build(num_classes=10)(torch.randn(8, 3, 64, 64))
    assert 1e-3 < float(logits.detach().std()) < 1e3


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck], ids=lambda block: block.__name__)
@pytest.mark.parametrize("kind", ["identity", "projection"])
def test_residual_block_is_its_formula(
    block: type[BasicBlock] | type[Bottleneck], kind: Literal["identity", "projection"]
) -> None:
    """A block is relu(F(x) + shortcut(x)), where F is convolutions and norms with relu between."""
    torch.manual_seed(0)
    module = block(4, 3, 2, kind).double().eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    out = x
    convolutions = 2 if block is BasicBlock else 3
    for index in range(1, convolutions + 1):
        conv, norm = module.get_submodule(f"conv{index}"), module.get_submodule(f"bn{index}")
        out = norm(conv(out))
        out = out.relu() if index < convolutions else out
    assert module.downsample is not None
    torch.testing.assert_close(module(x), (out + module.downsample(x)).relu())
    kept = block(3 * block.expansion, 3, 1, kind)
    assert kept.downsample is None
    assert kept(torch.randn(2, 3 * block.expansion, 5, 5)).shape[1] == 3 * block.expansion


@pytest.mark.parametrize(
    ("channels", "stride", "residual"), [((4, 4), 1, True), ((4, 4), 2, False), ((4, 8), 1, False)]
)
def test_inverted_residual_adds_where_the_shape_stays(
    channels: tuple[int, int], stride: int, residual: bool
) -> None:
    """The input is added exactly where neither stride nor channels change the shape."""
    block = InvertedResidual(*channels, stride, 6).eval()
    x = torch.randn(2, 4, 6, 6)
    expected = block.conv(x) + x if residual else block.conv(x)
    assert torch.equal(block(x), expected)


def test_mobilenet_halves_five_times_or_four() -> None:
    """The ImageNet stem leaves 1/32 of the size, the small stem 1/16."""
    image = torch.zeros(1, 3, 64, 64)
    sizes = {
        stem: mobilenet_v2(width=0.1, stem=stem).eval().features(image).shape[2:]
        for stem in ("imagenet", "small")
    }
    assert sizes == {"imagenet": (2, 2), "small": (4, 4)}


def test_small_stem_keeps_the_size_of_the_image() -> None:
    """The small stem of ResNet has stride 1 and no pooling; the ImageNet stem divides by 4."""
    sizes = {}
    for stem in ("small", "imagenet"):
        model = resnet18(width=2, stem=stem)
        model.layer1.register_forward_pre_hook(
            lambda _, args, stem=stem: sizes.update({stem: args[0].shape[2:]})
        )
        model(torch.randn(2, 3, 32, 32))
    assert sizes == {"small": (32, 32), "imagenet": (8, 8)}


def test_bottleneck_strides_in_its_3x3_convolution() -> None:
    """ResNet-50 has the stride in the 3x3 convolution, as the published checkpoints have."""
    block = resnet50(width=2).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_names_are_those_of_published_checkpoints() -> None:
    """State dicts have the names that torchvision's checkpoints have."""
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer4.1.bn2.bias",
        "fc.bias",
    } <= set(resnet18(width=2).state_dict())
    assert {
        "features.0.0.weight",
        "features.1.conv.1.weight",
        "features.2.conv.1.0.weight",
        "features.17.conv.3.running_mean",
        "features.18.1.weight",
        "classifier.1.bias",
    } <= set(mobilenet_v2(width=0.1).state_dict())


def test_identity_shortcut_subsamples_and_pads_with_zeros() -> None:
    """Option A takes every second pixel and adds zero channels behind."""
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    out = IdentityShortcut(2, 3, stride=2)(x)
    assert out[0, :2].tolist() == [[[0, 2], [6, 8]], [[9, 11], [15, 17]]]
    assert not out[0, 2].any()


def test_attention_equals_the_library_one() -> None:
    """The attention that is written out equals torch's scaled dot product attention."""
    torch.manual_seed(0)
    attention = Attention(12, heads=3)
    x = torch.randn(2, 5, 12)
    query, key, value = (
        layer(x).unflatten(2, (3, 4)).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(x), attention.project(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (resnet18, {"stem": "tiny"}, "stem='tiny'; use 'imagenet' or 'small'"),
        (resnet20, {"shortcut": "A"}, "shortcut='A'; use 'identity' or 'projection'"),
        (resnet20, {"width": 0}, "width=0; use 1 or more"),
        (mobilenet_v2, {"stem": "cifar"}, "stem='cifar'; use 'imagenet' or 'small'"),
        (mobilenet_v2, {"width": 0.0}, r"width=0\.0; use positive"),
        (vit_tiny_28, {"patch_size": 5}, "patch_size=5 must divide image_size=28"),
        (vit_tiny_28, {"heads": 5}, "heads=5 must divide dim=64"),
        (vit_tiny_28, {"pool": "max"}, "pool='max'; use 'class_token' or 'mean'"),
        (vit_tiny_28, {"num_classes": 0}, "below 1"),
        (bert, {"heads": 5}, "heads=5 must divide dim=768"),
        (bert, {"dim": 0}, "dim=0, heads=12, hidden=0; use positive sizes"),
    ],
)
def test_wrong_options_are_refused(build: Build, options: dict[str, Any], message: str) -> None:
    """A wrong option is an error that says what it got and what is allowed."""
    with pytest.raises(RecipeError, match=message):
        build(**options)


def test_vision_transformer_of_other_sizes() -> None:
    """Sizes are free: two tokens of one patch row, no blocks, any MLP ratio."""
    model = VisionTransformer(
        image_size=8, patch_size=8, dim=6, depth=0, heads=2, mlp_ratio=1.5, num_classes=2
    )
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert model.positions.shape == (1, 2, 6)


def test_bert_has_the_size_of_bert_base() -> None:
    """Twelve blocks have the parameters of BERT-base's encoder and the norm of its embeddings."""
    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    with torch.device("meta"):
        model = bert()
    assert sum(p.numel() for p in model.parameters()) == 12 * block + 2 * 768


def test_bert_is_its_formula() -> None:
    """A block adds attention and MLP to their input and normalises behind each, as BERT does."""
    torch.manual_seed(0)
    model = bert(depth=2, dim=12, heads=3, hidden=20).eval()
    x = torch.randn(2, 5, 12)
    norm = lambda y: nn.functional.layer_norm(y, (12,), eps=1e-12)  # noqa: E731
    expected = norm(x)
    for block in model.blocks:
        expected = norm(expected + block.attention(expected))
        expected = norm(expected + block.mlp(expected))
    torch.testing.assert_close(model(x), expected)


SMALL_VIT = {"image_size": 8, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3}


@pytest.mark.parametrize(
    ("build", "options", "shape", "preset"),
    [
        (resnet50, {"width": 4, "num_classes": 7}, (3, 33, 47), "uint8"),
        (VisionTransformer, SMALL_VIT, (3, 8, 8), "uint8"),
        (VisionTransformer, SMALL_VIT, (3, 8, 8), "int8"),
        (bert, {"depth": 1, "dim": 24, "heads": 3}, (7, 24), "uint8"),
        (bert, {"depth": 1, "dim": 24, "heads": 3}, (7, 24), "int8"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_large_networks_become_programs(
    build: Build, options: dict[str, Any], shape: tuple[int, ...], preset: str
) -> None:
    """The networks of the benchmarks are captured whole, and run on batches of other sizes."""
    torch.manual_seed(0)
    model = build(**options).eval()
    batch = torch.randn(4, *shape)
    qfloat = qcore.calibrate(qcore.prepare(model, batch[:2], preset), [batch])
    assert dict(qcore.info_of(qfloat).plan.captured) == {"": "whole"}
    q = qcore.convert(qfloat)
    with torch.no_grad():
        for size in (1, 3):
            assert torch.equal(q(batch[:size]), qfloat.eval()(batch[:size]))
        noise = q(batch) - model(batch)
        assert float(noise.norm() / model(batch).norm()) < 0.5
