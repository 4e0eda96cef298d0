"""Contributions of plug-ins that are registered in the process, as subjects of the kit."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import qcore
from qcore.specs import CheckedSpec
from qcore.testing import Subject, subjects

SPECS: dict[str, type[CheckedSpec]] = {
    "qcore_observers": qcore.ObserverSpec,
    "qcore_fake_quants": qcore.FakeQuantSpec,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def subject_of() -> Callable[..., Subject]:
    """Makes a class of a test module the only contribution of a plug-in ``acme``."""

    def make(hook: str, cls: type, **fields: Any) -> Subject:
        target = f"{cls.__module__}:{cls.__qualname__}"
        spec = SPECS[hook](name="part", target=target, **fields)
        plugin = type("Plugin", (), {hook: staticmethod(qcore.hookimpl(lambda: [spec]))})
        host = qcore.PluginHost([])
        host.register(plugin, name="acme")
        (subject,) = subjects(host, "acme")
        return subject

    return make
