"""The named schemes and presets: what each name stands for, and that all of them work."""

from collections.abc import Callable

import pytest
import torch

from qcore import (
    FakeQuantSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    PluginHost,
    PresetSpec,
    QScheme,
    SchemeSpec,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_fakequants.plugin import qcore_fake_quants

SPECS = qcore_fake_quants()
SCHEMES = {spec.name: spec.scheme for spec in SPECS if isinstance(spec, SchemeSpec)}
PRESETS = {spec.name: spec.qconfig for spec in SPECS if isinstance(spec, PresetSpec)}


def test_names_are_unique_within_their_kind() -> None:
    """Two contributions of one name would be an error at use."""
    for kind in (FakeQuantSpec, SchemeSpec, PresetSpec):
        names = [spec.name for spec in SPECS if isinstance(spec, kind)]
        assert len(names) == len(set(names))
    assert all(spec.summary for spec in SPECS)


def test_the_plugin_does_not_import_torch(loaded_by: Callable[[str, str], list[str]]) -> None:
    """Listing schemes is quick."""
    loaded = loaded_by("qcore_fakequants.plugin", "qcore_fake_quants")
    assert "qcore_fakequants.plugin" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_what_its_name_says(name: str) -> None:
    """Width, signedness, granularity and symmetry follow from the words of the name."""
    scheme = SCHEMES[name]
    base, *words = name.split("_")
    assert scheme.dtype.bits == int(base.removeprefix("u").removeprefix("int"))
    assert scheme.dtype.signed is not base.startswith("u")
    group = next((int(word[5:]) for word in words if word.startswith("group")), None)
    granularity = (
        PerChannel(0)
        if "channel" in words
        else PerToken()
        if "token" in words
        else PerGroup(group)
        if group
        else PerTensor()
    )
    assert scheme.granularity == granularity
    symmetric = scheme.dtype.signed
    if "affine" in words or "symmetric" in words:
        symmetric = "symmetric" in words
    assert scheme.symmetric is symmetric
    weights_of_8_bits = base == "int8" and ("channel" in words or group or "narrow" in words)
    assert (scheme.dtype.name == "int8_narrow") is bool(weights_of_8_bits)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_quantizes(name: str) -> None:
    """Through the min-max observer and back, to half a step but for what the int range cuts."""
    scheme: QScheme = SCHEMES[name]
    observer = PluginHost().get("observer", "minmax")(scheme=scheme)
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    observer(x)
    qparams = observer.calculate_qparams()
    back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
    assert (back - x).abs().max() <= qparams.scale.max() * 0.51


@pytest.mark.parametrize(
    "base", ["int8", "uint8", "int4", "uint4", "int3", "uint3", "int2", "uint2"]
)
def test_each_width_comes_in_the_usual_granularities(base: str) -> None:
    """One scale, a channel, and groups of 32, 64 and 128."""
    names = ("", "_channel", "_group32", "_group64", "_group128")
    assert {f"{base}{name}" for name in names} <= SCHEMES.keys()


def test_the_presets_are_the_ones_documented() -> None:
    """Their names, and what recipes start from."""
    assert {name for name in PRESETS if not name.startswith("megengine_")} == {
        "int8",
        "int8_minmax",
        "int8_weight_only",
        "uint8",
        "int4",
        "int4_weight_only",
        "int8_dynamic",
        "int4_dynamic",
        "w8a8",
        "w4a8",
        "w4a4",
        "w3a3",
        "w2a4",
    }
    assert {name for name, qconfig in PRESETS.items() if qconfig.activation is None} == {
        "int8_weight_only",
        "int4_weight_only",
    }


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "megengine_passive"])
def test_every_name_in_a_preset_is_found(name: str) -> None:
    """Scheme, observer and fake quantizer resolve through the host and fit each other."""
    host = PluginHost()
    for config in (PRESETS[name].weight, PRESETS[name].activation):
        if config is None:
            continue
        assert isinstance(config.scheme, str)
        scheme = SCHEMES[config.scheme]
        assert host.find("scheme", config.scheme).scheme == scheme
        observer = host.get("observer", config.observer)(
            scheme=scheme, **dict(config.observer_options)
        )
        fake = host.get("fake_quant", config.fake_quant)(
            scheme=scheme, observer=observer, **dict(config.fake_quant_options)
        )
        assert fake(torch.randn(4, 64)).shape == (4, 64)
