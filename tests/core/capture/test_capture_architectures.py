"""Capture of Hugging Face architectures, small and with random weights: whole, exact, any batch."""

import copy

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")


def image(batch, size=32):
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def text(batch):
    mask = torch.ones(batch, 12, dtype=torch.long)
    mask[-1, 8:] = 0
    return {"input_ids": torch.randint(3, 90, (batch, 12)), "attention_mask": mask}


def large_image(batch):
    return image(batch, 64)


ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TOKENS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}

# Class, configuration, inputs, and how many calls of modules the graph has at least.
ARCHITECTURES = {
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        image,
        25,
    ),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}, image, 140,
    ),
    "ConvNext": ("ConvNextForImageClassification", STAGES, image, 20),
    "RegNet": (
        "RegNetForImageClassification",
        {"embedding_size": 8, **STAGES, "groups_width": 8},
        image,
        70,
    ),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
        image,
        100,
    ),
    "ViT": (
        "ViTForImageClassification", {**ENCODER, "image_size": 32, "patch_size": 8}, image, 20,
    ),
    "Swin": (
        "SwinForImageClassification",
        {
            "image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2],
            "num_heads": [2, 2], "window_size": 4,
        },
        image,
        40,
    ),
    "Segformer": (
        "SegformerForSemanticSegmentation",
        {
            **STAGES, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 16,
        },
        large_image,
        70,
    ),
    "Bert": ("BertForSequenceClassification", {**ENCODER, **TOKENS}, text, 25),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        {**TOKENS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        text,
        20,
    ),
    "GPT2": (
        "GPT2LMHeadModel",
        {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
        text,
        10,
    ),
    "Llama": (
        "LlamaForCausalLM",
        {**ENCODER, **TOKENS, "num_key_value_heads": 2, "use_cache": False},
        text,
        15,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_whole(whole, agrees, name):
    """One graph of the model's own layers; equal outputs, inlined too, on other batch sizes."""
    kind, settings, inputs, calls = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, kind)(config).eval()
    names = {id(module): path for path, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    piece = whole(model, **inputs(2))
    assert piece.static is None
    targets = [n.target for n in piece.graph.graph.nodes if n.op == "call_module"]
    assert len(targets) >= calls
    for target in targets:
        assert names[id(piece.graph.get_submodule(target))] == target
    assert all("val" in n.meta for n in piece.graph.graph.nodes if n.op != "output")
    for batch in (1, 3):
        agrees(piece, model, **inputs(batch))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_a_cache_in_the_results_is_named_as_the_reason(capture_layers):
    """A model that returns an object the trace can't take apart is captured in parts."""
    small = {**ENCODER, **TOKENS, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**small, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    found = capture_layers(model, **text(2))
    assert "DynamicCache" in dict(found.failures)[""]
    called = {
        piece.qualified(node.target)
        for piece in found.pieces
        for node in piece.graph.graph.nodes
        if node.op == "call_module"
    }
    layers = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert layers <= called
