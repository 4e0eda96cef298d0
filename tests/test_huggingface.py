"""Architectures of transformers, with random weights, through the whole pipeline."""

import pytest
import torch

import qcore

transformers = pytest.importorskip("transformers")

# What transformers or torch warn about by themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def image(batch, size=32):
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def tokens(batch):
    return {"input_ids": torch.randint(0, 90, (batch, 10))}


def encoder_decoder(batch):
    return {**tokens(batch), "decoder_input_ids": torch.randint(0, 90, (batch, 6))}


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {"vocab_size": 99, **SMALL}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

# Configuration class, model class, inputs, options, and how many layers are quantized at least.
ARCHITECTURES = {
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        image,
        {"embedding_size": 8, "layer_type": "basic", **STAGES},
        12,
    ),
    "mobilenet-v2": (
        "MobileNetV2Config",
        "MobileNetV2ForImageClassification",
        image,
        {"depth_multiplier": 0.35},
        50,
    ),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", image, STAGES, 12),
    "regnet": (
        "RegNetConfig",
        "RegNetForImageClassification",
        image,
        {"embedding_size": 8, "groups_width": 4, **STAGES},
        20,
    ),
    "efficientnet": (
        "EfficientNetConfig",
        "EfficientNetForImageClassification",
        image,
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
        40,
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", image, {"image_size": 32, **SMALL}, 12),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        image,
        {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        12,
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForImageClassification",
        image,
        {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, **STAGES},
        24,
    ),
    "bert": ("BertConfig", "BertForSequenceClassification", tokens, TEXT, 12),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        tokens,
        {"vocab_size": 99, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        12,
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        tokens,
        {"vocab_size": 99, "n_embd": 16, "n_layer": 2, "n_head": 2, "use_cache": False},
        9,
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        tokens,
        {"num_key_value_heads": 2, "use_cache": False, **TEXT},
        15,
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        encoder_decoder,
        {
            "vocab_size": 99,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "use_cache": False,
            "decoder_start_token_id": 0,
        },
        30,
    ),
}


def build(name):
    config, kind, inputs, options, least = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    # The initial weights of some are so small that nothing would come out.
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
        elif name.endswith("weight"):
            torch.nn.init.ones_(parameter)
    return model.eval(), inputs, least


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_architecture(name):
    """Captured whole, quantized, and equal on every integer, on batches of other sizes."""
    model, inputs, least = build(name)
    qfloat = qcore.prepare(model, inputs(2), "int8_minmax")
    plan = qcore.info_of(qfloat).plan
    assert plan.captured == (("", "whole"),)
    assert plan.count("quantized") >= least
    qcore.calibrate(qfloat, [inputs(2), inputs(3)])
    q = qcore.convert(qfloat)
    found = qcore.count_differences(qfloat, q, [inputs(1), inputs(4)])
    assert found.compared > 1000
    assert found.differing == 0, {k: v for k, v in found.layers.items() if v[1]}
    batch = inputs(3)
    with torch.no_grad():
        want, got = model(**batch), q(**batch)
    assert type(got) is type(want)
    noise = (got.logits - want.logits).square().sum() / want.logits.square().sum()
    assert noise < 0.2, noise.item()


def test_linear_layers_of_gpt2_are_quantized():
    """GPT-2 keeps the weights of its layers as [K, N]: they are linear layers like others."""
    model, inputs, _ = build("gpt2")
    plan = qcore.plan(model, inputs(2), "int8_minmax")
    rows = [row for row in plan.rows if row.kind == "Conv1D"]
    assert len(rows) == 8
    assert {(row.op, row.status, row.converter) for row in rows} == {
        ("linear", "quantized", "converters:transposed_linear")
    }


@pytest.mark.parametrize("preset", ["int4_weight_only", "int8"])
def test_language_model_layer_by_layer(preset):
    """Without example inputs each layer of a language model is quantized by itself."""
    options = {**ARCHITECTURES["gpt2"][3], "n_embd": 32}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, None, preset), [tokens(2)])
    q = qcore.convert(qfloat)
    assert type(q) is type(model)
    found = qcore.count_differences(qfloat, q, [tokens(3)])
    assert found.differing == 0
    assert len(qcore.programs(q)) == 9
