"""Which rule belongs to which node of autograd, by the node's name."""

from __future__ import annotations

import functools
from collections.abc import Callable

from optuna_glocal.hypergradient.hvp.rules import binary, matmul, pointwise, reduction, shape
from optuna_glocal.hypergradient.hvp.rules import convolution as conv
from optuna_glocal.hypergradient.hvp.rules import derivatives as slopes
from optuna_glocal.hypergradient.hvp.rules import embedding_pooling as lookup
from optuna_glocal.hypergradient.hvp.rules import losses as loss
from optuna_glocal.hypergradient.hvp.rules import normalization as norm
from optuna_glocal.hypergradient.hvp.rules import split_concat as join
from optuna_glocal.hypergradient.hvp.rules.operation import Operation

Maker = Callable[..., Operation]

_RULES: dict[str, Maker] = {
    "MmBackward0": matmul.MatMul,
    "BmmBackward0": matmul.MatMul,
    "AddmmBackward0": matmul.AddMatMul,
    "BaddbmmBackward0": matmul.BatchedAddMatMul,
    "MvBackward0": matmul.MatVec,
    "DotBackward0": matmul.Dot,
    "AddBackward0": binary.Sum,
    "SubBackward0": binary.Difference,
    "SubBackward1": shape.Copy,
    "RsubBackward1": binary.ReversedDifference,
    "RsubBackward0": binary.ReversedTensors,
    "MulBackward0": binary.Product,
    "MulBackward1": binary.ProductByNumber,
    "DivBackward0": binary.Quotient,
    "DivBackward1": binary.QuotientByNumber,
    "WhereBackward0": binary.Where,
    "ReluBackward0": pointwise.Relu,
    "TanhBackward0": pointwise.Tanh,
    "AddBackward1": shape.Copy,
    "CloneBackward0": shape.Copy,
    "AliasBackward0": shape.Copy,
    "TBackward0": shape.Transposed,
    "ViewBackward0": shape.Reshaped,
    "UnsafeViewBackward0": shape.Reshaped,
    "ReshapeAliasBackward0": shape.Reshaped,
    "UnsqueezeBackward0": shape.Reshaped,
    "SqueezeBackward0": shape.Reshaped,
    "SqueezeBackward1": shape.Reshaped,
    "SqueezeBackward2": shape.Reshaped,
    "PermuteBackward0": shape.Permuted,
    "TransposeBackward0": shape.Permuted,
    "TransposeBackward1": shape.Permuted,
    "ExpandBackward0": shape.Expanded,
    "RepeatBackward0": shape.Repeated,
    "SelectBackward0": shape.Selected,
    "SliceBackward0": shape.Sliced,
    "IndexBackward0": shape.Indexed,
    "GatherBackward0": shape.Gathered,
    "SplitBackward0": join.Split,
    "UnsafeSplitBackward0": join.Split,
    "SplitWithSizesBackward0": join.Split,
    "UnbindBackward0": join.Unbound,
    "CatBackward0": functools.partial(join.Joined, False),
    "StackBackward0": functools.partial(join.Joined, True),
    "ConstantPadNdBackward0": shape.Padded,
    "SumBackward0": functools.partial(reduction.Reduced, False),
    "SumBackward1": functools.partial(reduction.Reduced, False),
    "MeanBackward0": functools.partial(reduction.Reduced, True),
    "MeanBackward1": functools.partial(reduction.Reduced, True),
    "LogsumexpBackward0": reduction.LogSumExp,
    "MaxBackward0": reduction.Extreme,
    "MinBackward0": reduction.Extreme,
    "LinalgVectorNormBackward0": reduction.Norm,
    "LogSoftmaxBackward0": loss.LogSoftmax,
    "SoftmaxBackward0": loss.Softmax,
    "SafeSoftmaxBackward0": loss.Softmax,
    "NllLossBackward0": functools.partial(loss.NegativeLogLikelihood, False),
    "NllLoss2DBackward0": functools.partial(loss.NegativeLogLikelihood, True),
    "MseLossBackward0": loss.SquaredError,
    "BinaryCrossEntropyWithLogitsBackward0": loss.BinaryCrossEntropyWithLogits,
    "SmoothL1LossBackward0": functools.partial(loss.Robust, "beta"),
    "HuberLossBackward0": functools.partial(loss.Robust, "delta"),
    "NativeLayerNormBackward0": norm.LayerNorm,
    "NativeBatchNormBackward0": norm.BatchNorm,
    "NativeGroupNormBackward0": norm.GroupNorm,
    "ConvolutionBackward0": conv.Convolution,
    "EmbeddingBackward0": lookup.Embedding,
    "MaxPool2DWithIndicesBackward0": functools.partial(lookup.MaxPool, 2),
    "MaxPool3DWithIndicesBackward0": functools.partial(lookup.MaxPool, 3),
    "AvgPool2DBackward0": functools.partial(lookup.AveragePool, False),
    "AdaptiveAvgPool2DBackward0": functools.partial(lookup.AveragePool, True),
}
for _name, _curved in slopes.CURVED.items():
    _RULES[f"{_name}Backward0"] = functools.partial(pointwise.Curved, _curved)
for _name, _straight in slopes.STRAIGHT.items():
    _RULES[f"{_name}Backward0"] = functools.partial(pointwise.Straight, _straight)
_RULES["ClampBackward1"] = _RULES.pop("ClampBackward0")


def rule_of(kind: type) -> Maker | None:
    """Makes the rule of nodes of this type from the active inputs; ``None`` if there is none."""
    return _RULES.get(kind.__name__)
