"""``qcore doctor`` says what works here, and why the rest does not."""

import json
import sys
import types
import warnings

import pytest

from qcore.cli import main
from qcore.cli.doctor import parse_cpuinfo

BACKENDS = """
    from qcore import BackendSpec, hookimpl

    @hookimpl
    def qcore_backends():
        return [
            BackendSpec(name=name, target=f"acme_backends:{name.capitalize()}")
            for name in ("works", "absent", "raises", "mumbles", "unloadable", "optional")
        ]
    """
TARGETS = """
    from qcore import Backend

    class Works(Backend):
        @classmethod
        def unavailable(cls): return None

    class Absent(Backend):
        @classmethod
        def unavailable(cls): return "no such accelerator"

    class Raises(Backend):
        @classmethod
        def unavailable(cls): raise OSError("driver")

    class Mumbles(Backend):
        @classmethod
        def unavailable(cls): return False

    def __getattr__(name):
        if name == "Optional":
            import not_there
        raise AttributeError(name)
    """


@pytest.fixture
def doctor(site, monkeypatch, capsys):
    """Run the doctor over one plug-in; give its report and exit code."""
    monkeypatch.setenv("QCORE_PLUGINS", "acme")

    def run(plugin, targets=""):
        site.install(
            "acme",
            modules={"acme_plugin.py": plugin, "acme_backends.py": targets},
            extras=["fast", "here"],
            requires=[
                "not-there>=1; extra == 'fast'",
                "attrs>=1; extra == 'here'",
                "never; sys_platform == 'none' and extra == 'here'",
                "acme[fast]; extra == 'here'",
            ],
        )
        code = main(["doctor", "--json"])
        return json.loads(capsys.readouterr().out), code

    return run


def test_backends(doctor):
    """Each backend works, or says why not; one that can't even say so is broken."""
    report, code = doctor(BACKENDS, TARGETS)
    found = {b["name"]: (b["available"], b["broken"], b["reason"]) for b in report["backends"]}
    assert found["works"] == (True, False, None)
    assert found["absent"] == (False, False, "no such accelerator")
    assert found["raises"][:2] == found["mumbles"][:2] == found["unloadable"][:2] == (False, True)
    assert "unavailable() failed: OSError: driver" in found["raises"][2]
    assert "returned False, no reason in words" in found["mumbles"][2]
    assert "has no 'Unloadable'" in found["unloadable"][2]
    assert code == 3


def test_hardware_that_is_not_there_is_not_degraded(doctor):
    """A machine without an accelerator is a healthy machine."""
    plugin = BACKENDS.replace('"raises", "mumbles", "unloadable", "optional"', "")
    report, code = doctor(plugin, TARGETS)
    assert (len(report["backends"]), code) == (2, 0)


def test_plugin_health(doctor):
    """A broken plug-in is in the report, and the exit code is 3."""
    report, code = doctor("1 / 0")
    (acme,) = (p for p in report["plugins"] if p["plugin"] == "acme")
    assert (acme["status"], code) == ("failed", 3)
    assert "ZeroDivisionError" in acme["failure"]


def test_extras(doctor):
    """Extras say what they lack and the command that installs them."""
    report, _ = doctor(BACKENDS)
    found = {e["extra"]: e for e in report["extras"] if e["distribution"] == "acme"}
    assert found["fast"]["missing"] == ["not-there>=1"]
    assert found["fast"]["install"] == "pip install 'acme[fast]'"
    assert found["here"]["installed"] is True


def test_report_of_the_machine(doctor):
    """Versions, processor and threads are those of this process."""
    import torch

    report, _ = doctor(BACKENDS)
    assert report["python"]["executable"] == sys.executable
    assert report["torch"]["version"] == torch.__version__
    assert report["torch"]["threads"] == torch.get_num_threads()
    assert report["torch"]["cuda"]["available"] == torch.cuda.is_available()
    assert report["cpu"]["usable_cores"] >= 1


def test_compiler(doctor, monkeypatch):
    """The compiler of a plug-in's C++, or why there is none."""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    report, _ = doctor(BACKENDS)
    assert report["compiler"]["command"] is None
    assert "install g++" in report["compiler"]["reason"]


@pytest.mark.parametrize(
    ("capability", "cores", "words"),
    [
        ((7, 0), [], "neither int8 nor float8"),
        ((8, 6), ["int8"], "tensor cores for int8)"),
        ((9, 0), ["int8", "float8"], "tensor cores for int8 and float8)"),
    ],
)
def test_a_gpu(doctor, monkeypatch, capsys, capability, cores, words):
    """Its compute capability, and what its tensor cores multiply."""
    import torch

    properties = types.SimpleNamespace(
        name="NVIDIA Test", major=capability[0], minor=capability[1], total_memory=2**30
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = doctor(BACKENDS)[0]["torch"]["cuda"]
    assert (found["available"], found["version"], found["reason"]) == (True, "13.0", None)
    (device,) = found["devices"]
    assert device["capability"] == ".".join(map(str, capability))
    assert device["tensor_cores"] == cores
    main(["doctor"])
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("cuda "))
    assert "13.0, NVIDIA Test (compute capability" in line
    assert words in line


def test_why_there_is_no_gpu(doctor, monkeypatch):
    """What torch says of a driver that it can't use is the reason."""
    import torch

    def available():
        warnings.warn("The NVIDIA driver on your\n  system is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", available)
    found = doctor(BACKENDS)[0]["torch"]["cuda"]
    assert found["reason"] == "The NVIDIA driver on your system is too old"


def test_text(site, monkeypatch, capsys):
    """The same for people: a line a fact, a table a list."""
    monkeypatch.setenv("QCORE_PLUGINS", "")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for start in (
        "qcore ",
        "python ",
        "processor ",
        "torch ",
        "cuda ",
        "c++ ",
        "BACKEND ",
        "EXTRA ",
    ):
        assert any(line.startswith(start) for line in lines), start


def test_broken_torch(monkeypatch, capsys):
    """A torch that can't be imported is what the doctor is for."""
    monkeypatch.setenv("QCORE_PLUGINS", "")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor", "--json"]) == 1
    assert "ModuleNotFoundError" in json.loads(capsys.readouterr().out)["torch"]["failure"]
    assert main(["doctor"]) == 1
    assert "ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", [])),
        ("model name\t: A\nflags\t\t: fpu avx2\n\nmodel name\t: B\n", ("A", ["avx2"])),
        ("processor : 0\nFeatures : fp asimd asimddp\n", ("", ["asimd", "asimddp"])),
    ],
)
def test_cpuinfo(text, expected):
    """The first processor speaks for all, on x86 and on Arm."""
    assert parse_cpuinfo(text) == expected
