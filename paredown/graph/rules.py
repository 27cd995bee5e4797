"""The table: ATen operator -> rule. One rule serves all elementwise operators, in place or not; what isn't here is a barrier."""

from collections.abc import Callable

import torch

from paredown.graph import rules_attention as products
from paredown.graph import rules_layers as layers
from paredown.graph import rules_recurrent as recurrent
from paredown.graph import rules_shapes as shapes
from paredown.graph import rules_statistics as statistics
from paredown.graph.labels import Dims
from paredown.graph.operation import Operation, nothing, short_name

Rule = Callable[[Operation], tuple[Dims, ...]]

_POOLS = "max_pool{0}d avg_pool{0}d adaptive_avg_pool{0}d adaptive_max_pool{0}d upsample_nearest{0}d"
_ROWS: tuple[tuple[Rule, str], ...] = (
    (layers.elementwise, "hardswish hardsigmoid relu6 selu celu rrelu log_sigmoid softplus square"),
    (layers.elementwise, "dropout feature_dropout alpha_dropout clone contiguous detach alias to copy lift_fresh_copy"),
    (layers.elementwise, "zeros_like ones_like empty_like full_like rand_like randn_like zero fill"),
    (layers.convolution, "conv1d conv2d conv3d"),
    (layers.transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    (layers.linear, "linear"),
    (products.matrix_product, "matmul mm bmm"),
    (products.biased_product, "addmm baddbmm"),
    (products.einsum, "einsum"),
    (products.attention, "scaled_dot_product_attention"),
    (products.gather, "index index_select"),
    (products.repeat_interleave, "repeat_interleave"),
    (recurrent.lstm, "lstm"),
    (recurrent.gru, "gru"),
    (recurrent.elman, "rnn_tanh rnn_relu"),
    (statistics.per_channel, "batch_norm instance_norm prelu"),
    (statistics.normalization, "layer_norm rms_norm"),
    (statistics.group_normalization, "group_norm"),
    (layers.embedding, "embedding"),
    (statistics.along, "softmax log_softmax cumsum cumprod flip roll"),
    (statistics.reduction, "mean sum amax amin prod var std logsumexp max min argmax argmin any all norm linalg_vector_norm"),
    (layers.over_space, " ".join(_POOLS.format(d) for d in (1, 2, 3))),
    (layers.over_space, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    (shapes.first_operand, "type_as"),
    (shapes.factory, "new_zeros new_ones new_full new_empty"),
    (shapes.reorder, "permute transpose t numpy_T mT swapaxes movedim"),
    (shapes.reshape, "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view"),
    (shapes.expand, "expand expand_as"),
    (shapes.repeat, "repeat"),
    (shapes.concatenate, "cat concat"),
    (shapes.stack, "stack"),
    (shapes.parts, "split split_with_sizes chunk"),
    (shapes.unbind, "unbind"),
    (shapes.select, "select"),
    (shapes.window, "slice"),
    (shapes.pad, "pad constant_pad_nd"),
    (shapes.item, "getitem"),
)
RULES: dict[str, Rule] = {name: rule for rule, names in _ROWS for name in names.split()}
_UNKNOWN = layers.frozen("there is no rule for this operator")


def follow(op: Operation) -> tuple[Dims, ...]:
    """Labels of the outputs of one operator. -> () where it returns no tensor."""
    outputs = nothing(op.node)
    if not outputs and _is_check(op):
        return ()
    inputs = [labels for x in op.operands() for dims in op.known.dims[x] for labels in dims]
    if all(labels is None for labels in inputs):
        return outputs
    return rule_of(op)(op)


def rule_of(op: Operation) -> Rule:
    """The rule of an operator; that of elementwise operators for whatever torch knows to be one."""
    known = RULES.get(short_name(op.node))
    return known or (layers.elementwise if _is_pointwise(op) and len(nothing(op.node)) == 1 else _UNKNOWN)


def _is_pointwise(op: Operation) -> bool:
    return torch.Tag.pointwise in getattr(op.node.target, "tags", ())


def _is_check(op: Operation) -> bool:
    """Sizes and assertions read no values."""
    return short_name(op.node).startswith(("sym_", "_assert"))
