"""The table of operators: name -> rule. What is not in it freezes what it touches, and is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitprune.trace import rules_contract as c
from vitprune.trace import rules_math as m
from vitprune.trace import rules_move as v

Rule = Callable[..., Any]

# fmt: off
POINTWISE = (
    "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "pow", "maximum", "minimum", "fmod",
    "atan2", "lerp", "addcmul", "addcdiv", "neg", "abs", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt",
    "reciprocal", "square", "sin", "cos", "tan", "tanh", "sigmoid", "erf", "floor", "ceil", "round", "sign", "relu",
    "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid",
    "softplus", "logsigmoid", "prelu", "clamp", "clamp_min", "clamp_max", "clip", "threshold", "masked_fill",
    "nan_to_num", "logical_not", "logical_and", "logical_or", "bitwise_not", "eq", "ne", "lt", "le", "gt", "ge",
    "isnan", "isinf", "relu_", "silu_", "gelu_", "mul_", "div_", "sub_", "clamp_", "clamp_min_", "masked_fill_",
    "sigmoid_", "tanh_", "hardtanh_", "hardswish_", "exp_", "neg_", "leaky_relu_", "bernoulli_", "relu6_",
)
SAME = (
    "dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone", "to", "_to_copy", "alias",
    "detach", "detach_", "lift_fresh", "lift_fresh_copy", "requires_grad_", "float", "half", "double", "bfloat16",
    "type", "type_as", "positive", "_assert_tensor_metadata", "fill_", "zero_", "native_dropout", "erfinv_",
    "normal_", "uniform_", "vitprune_mark",
)
CREATE = (
    "arange", "linspace", "rand", "randn", "eye", "scalar_tensor", "tril_indices", "triu_indices", "randperm",
    "tensor", "lift",
)
UNIFORM = (
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty",
)

RULES: dict[str, Rule] = {
    # sums over an axis
    "linear": c.linear, "addmm": c.addmm, "mm": c.matmul, "bmm": c.matmul, "matmul": c.matmul, "mv": c.matmul,
    "baddbmm": c.baddbmm, "einsum": c.einsum, "scaled_dot_product_attention": c.attention, "softmax": c.softmax,
    "_softmax": c.softmax, "log_softmax": c.softmax, "conv1d": c.conv, "conv2d": c.conv, "conv3d": c.conv,
    # norms, reductions, element-wise operators of their own kind
    "add": m.add, "add_": m.add, "layer_norm": m.layer_norm, "rms_norm": m.layer_norm, "batch_norm": m.batch_norm,
    "group_norm": m.group_norm, "sum": m.total, "linalg_vector_norm": m.vector_norm, "norm": m.vector_norm, "mean":
    m.mean, "amax": m.statistic, "amin": m.statistic, "var": m.statistic, "std": m.statistic, "max": m.statistic,
    "min": m.statistic, "argmax": m.statistic, "any": m.statistic, "all": m.statistic, "logsumexp": m.statistic,
    "adaptive_avg_pool1d": m.pool, "adaptive_avg_pool2d": m.pool, "avg_pool1d": m.pool, "avg_pool2d": m.pool,
    "max_pool2d": m.pool, "upsample_bicubic2d": m.pool, "upsample_bilinear2d": m.pool, "upsample_nearest2d": m.pool,
    "upsample_linear1d": m.pool, "_upsample_bicubic2d_aa": m.pool, "_upsample_bilinear2d_aa": m.pool,
    "upsample_nearest1d": m.pool, "adaptive_max_pool2d": m.pool, "pad": m.pad, "constant_pad_nd": m.pad, "roll":
    m.roll, "where": m.where, "copy_": m.inplace_copy, "copy": m.inplace_copy, "zeros_like": m.like, "ones_like":
    m.like, "full_like": m.like, "empty_like": m.like, "rand_like": m.like, "randn_like": m.like, "cumsum":
    m.cumulative, "argsort": m.cumulative,
    # moves
    "view": v.reshape, "reshape": v.reshape, "_unsafe_view": v.reshape, "flatten": v.reshape, "unflatten":
    v.reshape, "squeeze": v.reshape, "view_as": v.reshape, "permute": v.permute, "transpose": v.transpose,
    "swapaxes": v.transpose, "t": v.transpose, "numpy_T": v.reverse_axes, "movedim": v.movedim, "moveaxis":
    v.movedim, "unsqueeze": v.unsqueeze, "expand": v.expand, "expand_as": v.expand, "broadcast_to": v.expand,
    "select": v.select, "unbind": v.unbind, "slice": v.slice_, "narrow": v.narrow, "split": v.split,
    "split_with_sizes": v.split, "chunk": v.split, "tensor_split": v.split, "cat": v.cat, "concat": v.cat,
    "concatenate": v.cat, "stack": v.stack, "repeat": v.repeat, "tile": v.repeat, "repeat_interleave":
    v.repeat_interleave, "flip": v.flip, "meshgrid": v.meshgrid, "embedding": v.embedding, "reshape_as": v.reshape,
    "im2col": v.im2col, "col2im": v.col2im, "index": v.index, "index_select": v.index_select, "gather": v.gather,
}
# fmt: on
RULES |= dict.fromkeys(POINTWISE, m.elementwise)
RULES |= dict.fromkeys(SAME, m.same)
RULES |= dict.fromkeys(CREATE, m.constant)
RULES |= dict.fromkeys(UNIFORM, m.uniform)


def rule_for(name: str) -> Rule:
    """The rule of an operator, `unknown` where there is none."""
    return RULES.get(name, m.unknown)
