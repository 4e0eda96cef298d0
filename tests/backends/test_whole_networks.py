"""Whole networks at their usual sizes, on every instruction set: their results are exact."""

import pytest
import torch

import qcore

from .forcing import run_forced

pytestmark = pytest.mark.slow

IMAGES, TOKENS = (2, 3, 224, 224), (2, 128, 768)
NETWORKS = {
    "resnet18": IMAGES,
    "resnet50": IMAGES,
    "mobilenet_v2": IMAGES,
    "vit_small": IMAGES,
    "bert": TOKENS,
}
RUNS = [
    *(("native", {"QCORE_NATIVE_ISA": isa}) for isa in ("avx2", "avx512vnni", "avx512vbmi", "amx")),
    # Without VNNI oneDNN's products could saturate, so there the reference runs all of it.
    *(("cpu", {"ONEDNN_MAX_CPU_ISA": isa}) for isa in ("AVX512_CORE_VNNI", "AVX512_CORE_AMX")),
]
SCRIPT = """
    import sys, torch, qcore
    backend, folder = sys.argv[1:]
    q = qcore.load(folder)
    x = torch.load(folder + ".pt")
    with torch.no_grad():
        wanted = q(x)
        lowered = qcore.lower(q, backend)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(lowered(x), wanted), threads
    kernels = qcore.lowered_info(lowered)[""].kernels
    print(sum("qconv" in name or "qlinear" in name for name in kernels))
"""


@pytest.fixture(scope="module", params=NETWORKS)
def artifacts(request, tmp_path_factory):
    """A network with random weights as a program, prepared for the contract of each backend."""
    torch.manual_seed(0)
    host = qcore.default_host()
    model = host.get("model", request.param)().eval()
    x = torch.randn(NETWORKS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    for backend in ("cpu", "native"):
        recipe = qcore.Recipe(preset="uint8", backend=backend)
        q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, recipe), [x]))
        qcore.save(q, folder / backend)
        torch.save(x, f"{folder / backend}.pt")
    return folder


@pytest.mark.parametrize(
    ("backend", "forced"), RUNS, ids=[f"{name}-{next(iter(e.values()))}" for name, e in RUNS]
)
def test_results_are_those_of_the_reference(artifacts, backend, forced):
    """With one thread and with two."""
    folder = str(artifacts / backend)
    assert int(run_forced(SCRIPT, backend, folder, backend=backend, forced=forced)) > 0
