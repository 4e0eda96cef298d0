"""Lowering to the CUDA backend: whole networks, where they run, and what is refused."""

import os
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

import qcore
from qcore_backends.cuda import device as device_module

CUDA = qcore.default_host().get("backend", "cuda")


class Block(nn.Module):
    """A stem, a pool, a residual block and a classifier."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.third = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 3, 2, 1)
        x = torch.relu(self.third(nn.functional.relu6(self.second(x))) + x)
        x = torch.cat([x, torch.sigmoid(x) * x], 1)[:, ::2]
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """One block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(32, 96), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x):
        shape = (*x.shape[:2], 4, 8)
        q, k, v = (t.reshape(shape).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        y = (weights @ v).transpose(1, 2).reshape(x.shape)
        return self.norm(x + self.out(y)).mean(1)


def program(model, x, preset):
    return qcore.convert(qcore.calibrate(qcore.prepare(model.eval(), x, preset), [x]))


@pytest.mark.parametrize("preset", ["int8_minmax", "uint8", "int4", "int8_dynamic"])
@pytest.mark.parametrize("kind", ["block", "depthwise", "attention"])
def test_a_network_gives_the_same_integers(device, preset, kind):
    """Every layer equals the reference on the same device, on any batch size."""
    torch.manual_seed(0)
    model = Attention() if kind == "attention" else Block(8 if kind == "depthwise" else 2)
    shape = (19, 32) if kind == "attention" else (3, 17, 15)
    q = program(model, torch.randn(4, *shape), preset).to(device)
    lowered = qcore.lower(q, "cuda")
    for batch in (1, 3):
        x = torch.randn(batch, *shape, device=device)
        assert torch.equal(lowered(x), q(x))
    left = qcore.lowered_info(lowered)[""].reference
    assert not [name for name in left if name.startswith(("q", "dequantize"))], left


def test_the_default_contract_is_asked_for(device):
    """A program of another contract is refused, and one of the default is not."""
    recipe = qcore.Recipe(preset="uint8", backend="cpu")
    x = torch.randn(2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, recipe), [x]))
    with pytest.raises(qcore.BackendError, match="Prepare with backend = 'cuda'"):
        qcore.lower(q.to(device), "cuda")


def test_a_recipe_can_ask_for_it(device):
    """QFloat prepared for this backend computes what the backend computes."""
    torch.manual_seed(0)
    recipe = qcore.Recipe(preset="int8_minmax", backend="cuda")
    x = torch.randn(4, 3, 17, 15)
    qfloat = qcore.calibrate(qcore.prepare(Block(1).eval(), x, recipe), [x])
    lowered = qcore.lower(qcore.convert(qfloat).to(device), "cuda")
    found = qcore.count_differences(qfloat.to(device).eval(), lowered, [x.to(device)])
    assert found.compared > 0
    assert found.differing == 0


def test_weights_are_held_once(device):
    """A lowered program keeps the kernels' form of its constants, and no other."""
    q = program(nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(2, 64), "int8_dynamic")
    lowered = qcore.lower(q.to(device), "cuda")
    assert sum(b.numel() for b in lowered.buffers() if b.dtype == torch.int8) == 64 * 64
    assert sum(b.numel() for b in q.buffers() if b.dtype == torch.int8) == 64 * 64


def test_inputs_elsewhere_are_refused(device):
    """Before any kernel reads their memory, with the cure."""
    q = program(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8), "int8_minmax").to(device)
    lowered = qcore.lower(q, "cuda")
    elsewhere = torch.empty(2, 8, device="meta")
    with pytest.raises(qcore.BackendError, match=r"input 'input' is on meta, .*input\.to\("):
        lowered(elsewhere)


def test_programs_over_several_gpus_are_refused(monkeypatch):
    """A kernel needs all operands on one GPU."""
    from qcore_backends.cuda import backend

    here = types.SimpleNamespace
    spread = here(
        parameters=lambda: [here(device=torch.device("cuda:1"))],
        buffers=lambda: [here(device=torch.device("cuda:0")), here(device=torch.device("cpu"))],
    )
    with pytest.raises(qcore.BackendError, match=r"on cuda:0, cuda:1; .* q.to\('cuda:0'\)"):
        backend._devices_of(spread)


def test_programs_on_an_old_gpu_are_refused(machine):
    """Also where the current GPU is new enough."""
    from qcore_backends.cuda import backend

    machine(capability=(7, 5))
    here = types.SimpleNamespace
    there = here(parameters=lambda: [here(device=torch.device("cuda:1"))], buffers=list)
    with pytest.raises(qcore.BackendError, match=r"lies on cuda:1, but NVIDIA Test .* need 8.0"):
        backend._devices_of(there)


def test_a_program_stays_with_its_inputs(device):
    """Lowered from the CPU it takes and gives CPU tensors, wherever its kernels are."""
    torch.manual_seed(0)
    q = program(Block(1), torch.randn(2, 3, 17, 15), "int8_minmax")
    x = torch.randn(3, 3, 17, 15)
    assert torch.equal(qcore.lower(q, "cuda")(x), q(x))


def test_inputs_are_carried_to_the_gpu_and_results_back(monkeypatch):
    """All tensors go through the copies; sizes and other plain values stay what they are."""
    from qcore_backends.cuda import backend

    graph = torch.fx.Graph()
    x, n, y = (graph.placeholder(name) for name in "xny")
    total = graph.call_function(torch.add, (x, y))
    graph.output(({"total": total, "n": n}, total))
    module = torch.fx.GraphModule({}, graph)
    backend._add_entrance(module, carries=True)
    module.graph.lint()
    module.recompile()
    moved = []
    monkeypatch.setattr(backend, "_moved", lambda value, device: moved.append(value) or value)
    found, again = module(torch.ones(2), 7, torch.ones(2))
    assert found["n"] == 7
    assert torch.equal(found["total"], again)
    assert sum(isinstance(value, torch.Tensor) for value in moved) == 2
    assert sum("_moved" in str(node.target) for node in module.graph.nodes) == 3


def test_a_kernel_without_a_gpu_is_refused(monkeypatch):
    """A lowered model that was moved back to the CPU says so."""
    pytest.importorskip("triton")
    from qcore_backends.cuda import launch

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(qcore.BackendError, match=r"a tensor on cpu; move .* model.to\('cuda'\)"):
        launch.launch(None, (1,), on=torch.zeros(1))


@pytest.fixture
def machine(monkeypatch):
    """A machine as the backend sees it."""

    def make(*, triton=True, interpret=False, cuda="13.0", hip=None, found=True, capability=(9, 0)):
        find = (lambda name: object()) if triton else (lambda name: None)
        properties = types.SimpleNamespace(
            name="NVIDIA Test",
            major=capability[0],
            minor=capability[1],
            multi_processor_count=100,
            shared_memory_per_block_optin=100_000,
        )
        monkeypatch.setattr("importlib.util.find_spec", find)
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        device_module.gpu.cache_clear()

    yield make
    monkeypatch.undo()
    device_module.gpu.cache_clear()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"triton": False}, r"Triton is not installed; run: pip install 'qcore-quant\[cuda\]'"),
        ({"cuda": None, "hip": "7"}, "is for ROCm; install a build of torch for CUDA"),
        ({"cuda": None}, "has no CUDA; install a build of torch for CUDA"),
        ({"found": False}, "finds no CUDA device; check that nvidia-smi"),
        ({"capability": (7, 5)}, r"capability 7.5; the kernels need 8.0 .* backend 'reference'"),
    ],
)
def test_why_it_is_not_available(machine, facts, words):
    """Each reason has its cure, and lowering gives it."""
    machine(**facts)
    q = program(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8), "int8_minmax")
    with pytest.raises(qcore.BackendError, match=words):
        qcore.lower(q, "cuda")


def test_what_it_runs_on(machine):
    """The doctor's line has the GPU and what its tensor cores multiply."""
    pytest.importorskip("triton")
    machine()
    assert CUDA.unavailable() is None
    assert "NVIDIA Test, compute capability 9.0: int8 and float8 tensor" in CUDA.runs_on()
    machine(capability=(8, 6))
    assert "int8 tensor cores, none for float8" in CUDA.runs_on()
    machine(interpret=True, cuda=None)
    assert CUDA.unavailable() is None
    assert "in its interpreter" in CUDA.runs_on()


def test_asking_does_not_import_triton():
    """A machine without it can ask; what is not lowered costs nothing."""
    code = (
        "import sys, qcore; print(qcore.default_host().get('backend', 'cuda').unavailable());"
        "print([m for m in sys.modules if m.partition('.')[0] == 'triton'])"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_qfloat_on_a_gpu_gives_the_integers_of_the_cpu(device, monkeypatch):
    """Whatever torch may do to float products there: TF32, Winograd, bfloat16."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 144, 64), nn.ReLU())
    x = torch.randn(8, 64, 12, 12)
    qfloat = qcore.calibrate(qcore.prepare(model.eval(), x, "int8_minmax"), [x]).eval()
    wanted = qcore.layer_values(qfloat, x)
    found = qcore.layer_values(qfloat.to(device), x.to(device))
    for name, value in wanted.items():
        assert torch.equal(found[name].cpu(), value), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("kind", ["attention", "lstm", "embedding", "transposed"])
@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int4"])
def test_qfloat_on_a_gpu_gives_the_integers_of_q(device, monkeypatch, kind, preset):
    """Where float operations stand between them, which a GPU and a CPU compute differently."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, x = {
        "attention": lambda: (Attention(), torch.randn(4, 19, 32)),
        "lstm": lambda: (nn.Sequential(nn.LSTM(32, 16)), torch.randn(7, 4, 32)),
        "embedding": lambda: (
            nn.Sequential(nn.Embedding(11, 32), nn.Linear(32, 8)), torch.randint(0, 11, (4, 9))
        ),
        "transposed": lambda: (
            nn.Sequential(nn.ConvTranspose2d(8, 2, 3, 2), nn.Flatten(), nn.Linear(162, 5)),
            torch.randn(4, 8, 4, 4),
        ),
    }[kind]()  # fmt: skip
    qfloat = qcore.calibrate(qcore.prepare(model.eval(), x, preset), [x])
    q = qcore.convert(qfloat).to(device)
    found = qcore.count_differences(qfloat.to(device).eval(), q, [x.to(device)])
    assert found.differing == 0, found.layers


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("name", ["resnet50", "vit_tiny"])
def test_whole_networks(device, name):
    """On a GPU, QFloat, Q and the kernels agree on each integer of a large network."""
    torch.manual_seed(0)
    if name == "resnet50":
        model, x = qcore.default_host().get("model", "resnet50")(), torch.randn(8, 3, 224, 224)
    else:
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(num_hidden_layers=4)
        model, x = transformers.ViTModel(config), torch.randn(8, 3, 224, 224)
    qfloat = qcore.calibrate(qcore.prepare(model.eval(), x[:2], "int8_minmax"), [x[:4]])
    lowered = qcore.lower(qcore.convert(qfloat).to(device), "cuda")
    found = qcore.count_differences(qfloat.to(device).eval(), lowered, [x.to(device)])
    assert found.differing == 0, found.layers
