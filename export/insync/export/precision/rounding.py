"""Graphs that round like TF32, BF16 or FP16 while ONNX Runtime computes in FP32, to show the effect without a GPU.

Half precision, as in a strongly typed plan: weights and every node's outputs are rounded; sums are FP32, as in tensor cores.
TF32: the factors of convolutions and matrix products are rounded to 10 bits; all else is FP32. Rounding is to nearest:
hardware that truncates instead has up to twice the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PRECISIONS = ("tf32", "bf16", "fp16")
_MULTIPLYING = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# These only move values, so rounded values stay rounded.
_MOVING = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_SAMPLER = "GridSample"
_TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}
_CUT_BITS = {"tf32": 13, "bf16": 16}  # of FP32's 23 bits of mantissa
_SPLITTER = "rounding.splitter"


def rounded_array(values: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    """Round to the nearest values of a precision, as FP32; ties to even. FP16 becomes infinite beyond 65,504.

    Raises:
        ValueError: the precision is not one of `PRECISIONS`.
    """
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if precision not in _CUT_BITS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    cut = _CUT_BITS[precision]
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(cut)) & np.uint32(1)
    nearest = (bits + np.uint32((1 << (cut - 1)) - 1) + odd) >> np.uint32(cut) << np.uint32(cut)
    return np.where(np.isfinite(values), nearest.view(np.float32), values)


def rounded_graph(proto: onnx.ModelProto, precision: str, exact: Sequence[str] = ()) -> onnx.ModelProto:
    """Return a graph with the same inputs and outputs that rounds like a precision.

    Args:
        proto: an FP32 graph without subgraphs.
        precision: one of `PRECISIONS`.
        exact: names of inputs; nodes between them and the coordinates at which pixels are sampled stay FP32, except layers
            with weights and what follows from those alone.

    Raises:
        ValueError: the precision is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _Rounding(result.graph, precision, _between(result.graph, exact)).apply()
    onnx.checker.check_model(result)
    return result


class _Rounding:
    """Rewrites one graph in place."""

    def __init__(self, graph: onnx.GraphProto, precision: str, exact: set[str]) -> None:
        self._graph, self._precision = graph, precision
        self._exact = exact  # first outputs of nodes that stay FP32
        self._nodes: list[onnx.NodeProto] = []
        self._weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
        self._floats = _float_values(graph)
        self._done: dict[str, str] = {}  # a value's name → its rounded value's name

    def apply(self) -> None:
        before = list(self._graph.node)
        if self._precision == "tf32":
            for node in before:
                if node.op_type in _MULTIPLYING and node.output[0] not in self._exact:
                    for index in range(min(2, len(node.input))):  # a third input is added, not multiplied
                        node.input[index] = self._rounded(node.input[index])
                self._nodes.append(node)
        else:
            self._halve(before)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        if self._precision == "tf32":
            self._graph.initializer.append(numpy_helper.from_array(np.float32(2**13 + 1).reshape(()), _SPLITTER))
            used = {name for node in self._nodes for name in node.input}
            kept = [one for one in self._graph.initializer if one.name in used]
            del self._graph.initializer[:]
            self._graph.initializer.extend(kept)

    def _halve(self, before: list[onnx.NodeProto]) -> None:
        exact = {name for node in before if node.output[0] in self._exact for name in node.input}
        others = {name for node in before if node.output[0] not in self._exact for name in node.input}
        for name, weight in self._weights.items():
            if name not in exact:
                weight.CopyFrom(self._rounded_weight(weight, name))
        given = {one.name for one in self._graph.input} & self._floats
        renamed = {name: self._rounded(name) for name in given | (exact & others & self._weights.keys())}
        for node in before:
            if node.output[0] in self._exact:
                self._nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
            outputs = list(node.output)
            self._nodes.append(node)
            if node.op_type in _MOVING:
                continue
            for index, name in enumerate(outputs):
                if name in self._floats:  # the rounded value keeps the name, which graph outputs and consumers use
                    node.output[index] = f"{name}.full"
                    self._cast(node.output[index], name)

    def _rounded(self, name: str) -> str:
        """Return the name of a value's rounded value, which is added if there is none yet."""
        if name in self._done:
            return self._done[name]
        target = self._done[name] = f"{name}.rounded"
        if name in self._weights:
            self._graph.initializer.append(self._rounded_weight(self._weights[name], target))
        elif self._precision == "tf32":
            self._split(name, target)
        else:
            self._cast(name, target)
        return target

    def _rounded_weight(self, weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = np.asarray(numpy_helper.to_array(weight), np.float32)
        return numpy_helper.from_array(rounded_array(values, self._precision).reshape(values.shape), name)

    def _cast(self, name: str, target: str) -> None:
        half = f"{target}.half"
        self._nodes.append(helper.make_node("Cast", [name], [half], to=_TYPES[self._precision]))
        self._nodes.append(helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT))

    def _split(self, name: str, target: str) -> None:
        """Add the upper half of Veltkamp's splitting (Dekker, 1971): 11 significant bits, using only FP32 arithmetic."""
        large, rest = f"{target}.large", f"{target}.rest"
        self._nodes.append(helper.make_node("Mul", [name, _SPLITTER], [large]))
        self._nodes.append(helper.make_node("Sub", [large, name], [rest]))
        self._nodes.append(helper.make_node("Sub", [large, rest], [target]))


def _between(graph: onnx.GraphProto, inputs: Sequence[str]) -> set[str]:
    """Return the first outputs of the nodes between these inputs and the sampled coordinates, except layers with weights."""
    weights = {one.name for one in graph.initializer}
    reached = set(inputs)
    for node in graph.node:  # in topological order
        layer = node.op_type in _MULTIPLYING and len(node.input) > 1 and node.input[1] in weights
        if not layer and node.op_type != _SAMPLER and reached & set(node.input):
            reached.update(node.output)
    wanted = {node.input[1] for node in graph.node if node.op_type == _SAMPLER}
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(node.input)
    return {node.output[0] for node in graph.node if node.output[0] in reached & wanted}


def _float_values(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all FP32 values of a graph."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    inferred: Any = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
