"""Entry point of the built-in execution backends."""

from collections.abc import Iterable

from qcore import BackendSpec, hookimpl


@hookimpl
def qcore_backends() -> Iterable[BackendSpec]:
    yield BackendSpec(
        name="reference",
        summary="The definition of Q: plain torch, exact on every device.",
        target="qcore_backends.reference:ReferenceBackend",
    )
    yield BackendSpec(
        name="cpu",
        summary="oneDNN's int8 convolutions and linear layers, exact by their own contract.",
        target="qcore_backends.cpu:CpuBackend",
    )
    yield BackendSpec(
        name="cuda",
        summary="Triton kernels on int8 tensor cores, exact by the default contract.",
        target="qcore_backends.cuda.backend:CudaBackend",
    )
    yield BackendSpec(
        name="native",
        summary="Own CPU kernels, compiled at first use; exact by the default contract.",
        target="qcore_backends.native:NativeBackend",
    )
