"""Which operations besides those of qcore a program may call, by name.

A list, not a rule: what is not here is refused, when saving and when loading. All overloads of a
name count that change none of their arguments and write to nowhere;
:mod:`qcore.artifact.operations` checks that for each. Left out on purpose are operations that read
memory they were not given (``as_strided``, ``_unsafe_index``), that return memory nobody wrote
(``empty``), that are random, that touch files, that take or make sparse, quantized or
vendor-specific tensors, and gradients.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["ATEN", "FACTORIES", "FUNCTIONS", "MUST_BE"]


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


FACTORIES = _words(
    "arange eye full linspace ones scalar_tensor tril_indices triu_indices zeros",
)
"""Operations that need no tensor to make one."""

_ELEMENTWISE = _words(
    "abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil celu clamp clamp_max",
    "clamp_min clip complex conj conj_physical copysign cos cosh deg2rad digamma div divide elu",
    "erf erfc erfinv exp exp2 expm1 fill float_power floor floor_divide fmax fmin fmod frac gelu",
    "glu hardshrink hardsigmoid hardswish hardtanh heaviside hypot imag leaky_relu lerp lgamma",
    "log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logit masked_fill maximum minimum mish",
    "mul multiply nan_to_num neg negative polar positive pow prelu rad2deg real reciprocal relu",
    "relu6 remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus",
    "softshrink special_erf special_erfc special_expit special_expm1 special_log1p",
    "special_xlog1py sqrt square sub subtract tan tanh threshold true_divide trunc where xlogy",
    "bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor",
    "__and__ __lshift__ __or__ __rshift__ __xor__ logical_and logical_not logical_or logical_xor",
    "eq ge greater greater_equal gt isclose isfinite isin isinf isnan isneginf isposinf le less",
    "less_equal lt ne not_equal signbit",
)
_REDUCTIONS = _words(
    "all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum",
    "kthvalue linalg_norm linalg_vector_norm logcumsumexp logsumexp max mean median min msort",
    "nanmean nansum norm prod sort std std_mean sum topk var var_mean",
)
_PRODUCTS = _words(
    "addbmm addmm addmv addr baddbmm bilinear bmm cosine_similarity dot einsum inner linalg_cross",
    "linalg_matmul linalg_vecdot linear matmul mm mv outer pairwise_distance tensordot fft_fft",
    "fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_irfft fft_irfft2 fft_rfft fft_rfft2",
)
_LAYERS = _words(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d",
    "_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "affine_grid_generator alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm",
    "_native_batch_norm_legit_no_training channel_shuffle col2im conv1d conv2d conv3d",
    "conv_transpose1d conv_transpose2d conv_transpose3d convolution dropout embedding",
    "feature_alpha_dropout feature_dropout grid_sampler grid_sampler_2d grid_sampler_3d",
    "group_norm gru im2col instance_norm layer_norm log_softmax _log_softmax lstm max_pool1d",
    "max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices",
    "max_pool3d_with_indices native_group_norm native_layer_norm pixel_shuffle pixel_unshuffle",
    "rms_norm rnn_relu rnn_tanh _safe_softmax scaled_dot_product_attention softmax _softmax",
    "upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d",
    "upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm",
)
_MOVEMENTS = _words(
    "adjoint alias atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat",
    "chunk clone column_stack concat concatenate constant_pad_nd contiguous detach diag",
    "diag_embed diagonal diagonal_scatter dsplit dstack expand expand_as flatten flip fliplr",
    "flipud hsplit hstack lift_fresh_copy meshgrid movedim moveaxis mH mT narrow numpy_T pad",
    "permute ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave",
    "replication_pad1d replication_pad2d replication_pad3d reshape reshape_as roll rot90",
    "row_stack select select_scatter slice slice_scatter split split_with_sizes squeeze stack",
    "swapaxes swapdims t tensor_split tile transpose tril triu unbind unflatten unfold",
    "unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze _unsafe_view view view_as",
    "view_as_complex view_as_real vsplit vstack",
)
_INDEXING = _words(
    "argwhere bincount bucketize gather index index_add index_copy index_fill index_put",
    "index_select item masked_scatter masked_select nonzero one_hot scatter scatter_add",
    "scatter_reduce searchsorted take take_along_dim",
)
_TYPES = _words(
    "full_like new_full new_ones new_zeros ones_like to _to_copy type_as zeros_like sym_numel",
    "sym_size",
)

ATEN: frozenset[str] = (
    FACTORIES | _ELEMENTWISE | _REDUCTIONS | _PRODUCTS | _LAYERS | _MOVEMENTS | _INDEXING | _TYPES
)
"""Names in ``torch.ops.aten``."""

MUST_BE: Mapping[str, Mapping[str, Any]] = {
    "alpha_dropout": {"train": False},
    "batch_norm": {"training": False},
    "dropout": {"train": False},
    "feature_alpha_dropout": {"train": False},
    "feature_dropout": {"train": False},
    "gru": {"train": False},
    "instance_norm": {"use_input_stats": True, "running_mean": None, "running_var": None},
    "lstm": {"train": False},
    "rnn_relu": {"train": False},
    "rnn_tanh": {"train": False},
    "scaled_dot_product_attention": {"dropout_p": 0.0},
}
"""Arguments that would make an operation random, or make it write to its running statistics."""

FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int]] = {
    **{
        f"operator.{name}": (getattr(operator, name), count)
        for count, names in (
            (1, ("neg", "pos", "abs", "not_")),
            (2, ("add", "sub", "mul", "floordiv", "truediv", "mod")),
            (2, ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")),
        )
        for name in names
    },
    **{
        f"torch.{name}": (getattr(torch, name), count)
        for name, count in (
            ("sym_float", 1),
            ("sym_int", 1),
            ("sym_ite", 3),
            ("sym_max", 2),
            ("sym_min", 2),
            ("sym_not", 1),
        )
    },
}
"""Functions of sizes, which are Python numbers, and how many they take."""
