"""The plug-in ``zoo``: light, and every record leads to something that can be called."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from qcore import AlgorithmSpec, DatasetSpec, ModelSpec
from qcore_zoo import plugin

TEXT = ("bert", "minilm")
"""Models of tokens, which have neither channels nor classes."""

SPECS = (*plugin.qcore_models(), *plugin.qcore_datasets(), *plugin.qcore_algorithms())


def test_import_brings_no_torch() -> None:
    """The module that declares the contributions imports neither torch nor scikit-learn."""
    code = (
        "import sys, qcore_zoo.plugin as p; "
        "list(p.qcore_models()), list(p.qcore_datasets()), list(p.qcore_algorithms()); "
        "sys.exit(bool({'torch', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_target_takes_keyword_options(spec: ModelSpec | DatasetSpec | AlgorithmSpec) -> None:
    """Each target is a function whose options, but for the model of a stage, are keywords."""
    module, _, name = spec.target.partition(":")
    parameters = list(inspect.signature(getattr(import_module(module), name)).parameters.values())
    if isinstance(spec, AlgorithmSpec):
        assert [p.name for p in parameters[:2]] == ["model", "dataset"]
        parameters = parameters[1:]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    if isinstance(spec, ModelSpec) and spec.name not in TEXT:
        assert {"in_channels", "num_classes"} <= {p.name for p in parameters}
    assert spec.summary
