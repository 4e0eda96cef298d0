"""The small networks with which torch tests its own quantization: not one integer differs."""

import inspect

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import qcore

pytest.importorskip("expecttest")

# torch deprecates what its test networks use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def networks():
    """Every network of torch.testing._internal.common_quantization by name."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_quantization as module
    return {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }


def flat(*shape):
    return lambda: (torch.randn(shape),)


def indices(*more):
    """Indices of embeddings, and further inputs."""
    return lambda: (torch.randint(0, 10, (2, 4)), *(make() for make in more))


ENGINE = ("fbgemm",)
FIVE = flat(2, 5)
IMAGE = flat(2, 3, 10, 10)

# Arguments of the constructor and a function that draws inputs; None: the network's own example.
QUANTIZED = {
    "SingleLayerLinearModel": ((), None),
    "AnnotatedSingleLayerLinearModel": ((), None),
    "SingleLayerLinearDynamicModel": ((), None),
    "LinearAddModel": ((), None),
    "ConvModel": ((), None),
    "ConvTransposeModel": ((), None),
    "AnnotatedConvModel": (ENGINE, None),
    "AnnotatedConvTransposeModel": (ENGINE, None),
    "ConvBnModel": ((), None),
    "AnnotatedConvBnModel": ((), None),
    "ConvBnReLUModel": ((), None),
    "AnnotatedConvBnReLUModel": ((), None),
    "TwoLayerConvModel": ((), None),
    "TwoLayerLinearModel": ((), None),
    "LinearModelWithSubmodule": ((), None),
    "AnnotatedTwoLayerLinearModel": ((), None),
    "LinearReluModel": ((), None),
    "LinearReluLinearModel": ((), None),
    "LinearReluAddModel": ((), None),
    "LinearBnLeakyReluModel": ((), None),
    "LinearTanhModel": ((), None),
    "ConvBnAddReluModel": ((), None),
    "ConvReluModel": ((), None),
    "ConvReluConvModel": ((), None),
    "ConvReluAddModel": ((), None),
    "NormalizationTestModel": ((), FIVE),
    "NestedModel": ((), FIVE),
    "AnnotatedNestedModel": (ENGINE, FIVE),
    "AnnotatedSubNestedModel": ((), FIVE),
    "AnnotatedCustomConfigNestedModel": ((), FIVE),
    "QuantSubModel": ((), FIVE),
    "InnerModule": ((), FIVE),
    "FunctionalLinear": ((), None),
    "SingleLayerFunctionalLinearModel": ((), None),
    "TwoLayerFunctionalLinearModel": ((), None),
    "FunctionalLinearAddModel": ((), None),
    "FunctionalLinearReluModel": ((), None),
    "FunctionalLinearReluLinearModel": ((), None),
    "FunctionalConv2d": ((), None),
    "SingleLayerFunctionalConvModel": ((), None),
    "TwoLayerFunctionalConvModel": ((), None),
    "FunctionalConvReluModel": ((), None),
    "FunctionalConvReluConvModel": ((), None),
    "SkipQuantModel": ((), FIVE),
    "AnnotatedSkipQuantModel": (ENGINE, FIVE),
    "QuantStubModel": ((), FIVE),
    "ManualLinearQATModel": (ENGINE, FIVE),
    "ManualDropoutQATModel": (ENGINE, FIVE),
    "ManualLinearDynamicQATModel": ((), FIVE),
    "ManualConvLinearQATModel": ((), IMAGE),
    "ManualConvLinearSymmQATModel": ((), IMAGE),
    "ManualEmbeddingBagLinear": ((), indices()),
    "DeFusedEmbeddingBagLinear": ((), indices()),
    "SubModelForFusion": ((), flat(2, 2, 5, 5)),
    "SubModelWithoutFusion": ((), flat(2, 2, 5, 5)),
    "ModelForFusion": ((None,), flat(2, 3, 1, 37)),
    "ConvBNReLU": ((), IMAGE),
    "ModelWithSequentialFusion": ((), IMAGE),
    "ModelForFusionWithBias": ((), IMAGE),
    "ModelForLinearBNFusion": ((), flat(2, 20)),
    "ModelForConvTransposeBNFusion": ((), flat(2, 3, 4)),
    "ModelWithFunctionals": ((), FIVE),
    "ResNetBase": ((), IMAGE),
    "ModelMultipleOps": ((), IMAGE),
    "ModelMultipleOpsNoAvgPool": ((), flat(2, 3, 16, 16)),
    "DenseTopMLP": ((4, 2, 5, 3, 2), lambda: (torch.randn(2, 5), torch.randn(2, 4))),
    "EmbeddingWithStaticLinear": (
        (), lambda: (torch.randint(0, 10, (6,)), torch.tensor([0, 2]), torch.randn(2, 4)),
    ),
    "SparseNNModel": (
        (), lambda: (torch.randint(0, 10, (6,)), torch.tensor([0, 2]), torch.randn(2, 4)),
    ),
    "RNNDynamicModel": (("LSTM",), flat(3, 2, 2)),
    "RNNCellDynamicModel": (("GRUCell",), flat(2, 2)),
    "LSTMwithHiddenDynamicModel": (
        (), lambda: (torch.randn(3, 2, 2), (torch.randn(1, 2, 2), torch.randn(1, 2, 2))),
    ),
    "EmbeddingModule": ((), indices()),
    "EmbeddingBagModule": (
        (), lambda: (torch.randint(0, 10, (6,)), torch.tensor([0, 3, 6]), torch.ones(6)),
    ),
    "EmbBagWrapper": ((10, 5), lambda: (torch.randint(0, 10, (6,)), torch.tensor([0, 2]))),
}  # fmt: skip

# What has nothing that runs on integers, and why.
REFUSED = {"ActivationsTestModel": ((), FIVE, "hardswish: not all of its inputs are integers")}

# An observer, which is a module, but no network.
NO_NETWORKS = {"DummyObserver"}

# The normalization of torch's own example amplifies any rounding without bound.
WITHOUT_A_BOUND = {"NormalizationTestModel"}

# Offsets into a list of indices have no batch of their own; that of a sequence, and of a hidden
# state, is the second dimension.
FIXED_BATCH = {
    "EmbeddingWithStaticLinear",
    "SparseNNModel",
    "EmbeddingBagModule",
    "EmbBagWrapper",
    "LSTMwithHiddenDynamicModel",
    "RNNDynamicModel",
}


def resized(inputs, batch):
    """Random inputs of another batch size."""
    return tuple(
        torch.randn(batch, *t.shape[1:]) if t.is_floating_point()
        else torch.randint(0, 10, (batch, *t.shape[1:]))
        for t in inputs
    )  # fmt: skip


def test_the_lists_are_complete(networks):
    """Every network of this version of torch is in one of the lists."""
    assert set(networks) <= {*QUANTIZED, *REFUSED, *NO_NETWORKS}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized(networks, name):
    """Captured whole, QFloat equals Q on every integer, on batches of other sizes; near float."""
    if name not in networks:
        pytest.skip("not in this version of torch")
    arguments, draw = QUANTIZED[name]
    torch.manual_seed(0)
    model = networks[name](*arguments).eval()
    example = draw() if draw else model.get_example_inputs()
    fixed = name in FIXED_BATCH
    more = [example if fixed else resized(example, n) for n in (4, 3, 1)]
    qfloat = qcore.prepare(model, example, "int8_minmax")
    plan = qcore.info_of(qfloat).plan
    assert plan.captured in ((("", "whole"),), (("", "module"),))
    assert plan.count("quantized") + plan.count("weight-only") > 0
    qcore.calibrate(qfloat, more[:2])
    q = qcore.convert(qfloat)
    found = qcore.count_differences(qfloat, q, [example, *more])
    assert found.compared > 0
    assert found.differing == 0, found.layers
    with torch.no_grad():
        # Recurrent layers give their output and their state.
        want, got = (tree_leaves(m(*more[0]))[0] for m in (model, q))
    if name not in WITHOUT_A_BOUND:
        assert (got - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(networks, name):
    """Nothing in it runs on integers: an error that says why, layer by layer."""
    if name not in networks:
        pytest.skip("not in this version of torch")
    arguments, draw, reason = REFUSED[name]
    model = networks[name](*arguments).eval()
    with pytest.raises(qcore.QuantizationError, match=f"nothing in the model.*{reason}"):
        qcore.prepare(model, draw(), "int8_minmax")
