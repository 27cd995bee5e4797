"""The constants of an ONNX graph by name: initializers and the outputs of Constant nodes."""

from typing import Any

import numpy.typing as npt
from onnx import ModelProto, numpy_helper


class Constants:
    """A view of a graph's constants, read when asked for; `add` puts a new initializer into the graph."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t

    def get(self, name: str) -> npt.NDArray[Any] | None:
        """The value, or None where `name` is not a constant."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def rank(self, name: str) -> int:
        """Number of dimensions; 0 where `name` is not a constant."""
        tensor = self._tensors.get(name)
        return 0 if tensor is None else len(tensor.dims)

    def add(self, name: str, value: npt.NDArray[Any]) -> str:
        """The name of an initializer of this value: `name`, or one with a number where that is taken by another value."""
        tensor = numpy_helper.from_array(value, name)
        number = 0
        while tensor.name in self._tensors:
            if _same(self._tensors[tensor.name], tensor):
                return str(tensor.name)
            number += 1
            tensor.name = f"{name}_{number}"
        self._graph.initializer.append(tensor)
        self._tensors[tensor.name] = tensor
        return str(tensor.name)


def _same(a: Any, b: Any) -> bool:
    return bool(
        a.data_type == b.data_type
        and list(a.dims) == list(b.dims)
        and numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes()
    )
