"""ONNX: a node of a graph and its constants. The package is imported only for its own objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nbnorm import _arguments, _needed, _options
from nbnorm._content import NAMES
from nbnorm.exchange._arrays import arrays_of_one_axis, state_of
from nbnorm.state import BatchNormState

_CONSTANTS = "graph.initializer or a mapping of names to arrays"
_NAMES = ("scale", "B", "input_mean", "input_var")


def from_onnx(node: Any, initializers: Iterable[Any] | Mapping[str, Any]) -> BatchNormState:
    """A state from a BatchNormalization node of an ONNX graph.

    Parameters
    ----------
    node : onnx.NodeProto
        One of ``graph.node``.
    initializers : iterable of onnx.TensorProto, or mapping of str to array
        ``graph.initializer``, or the arrays under the names of the node's inputs. Others are ignored.

    Returns
    -------
    BatchNormState
        On the CPU, with copies of the arrays; float64 where float32 does not hold one of them. Its eps is the
        node's, its momentum 1 - the node's, to the digits of float32 that a node keeps.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind, or the numbers are not real.
    ValueError
        When the node is of another kind, one of its four inputs is no initializer, shapes differ, a variance is
        negative, or epsilon or momentum is out of range.
    ImportError
        When `initializers` are TensorProtos and onnx is missing.

    References
    ----------
    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from nbnorm import exchange
    >>> node = SimpleNamespace(op_type="BatchNormalization", input=["x", "s", "b", "m", "v"], attribute=[])
    >>> exchange.from_onnx(node, {name: np.ones(3, np.float32) for name in "sbmv"})  # or (node, graph.initializer)
    BatchNormState(3, eps=1e-05, momentum=0.1, dtype=float32, device='cpu', num_batches=0)
    """
    if getattr(node, "op_type", None) != "BatchNormalization" or len(node.input) != 5:
        found = getattr(node, "op_type", type(node).__qualname__)
        raise ValueError(f"node is a {found!s:.40}; expected a BatchNormalization with 5 inputs")
    _arguments.instance("initializers", initializers, Iterable, _CONSTANTS)
    inputs = dict(zip(_NAMES, list(node.input)[1:]))
    constants = initializers if isinstance(initializers, Mapping) else _by_name(initializers, set(inputs.values()))
    for role, name in inputs.items():
        if name not in constants:
            raise ValueError(f"initializers has no {name!r:.40}, the node's {role}; expected all but X to be constants")
    numbers = {"epsilon": 1e-5, "momentum": 0.9, **{a.name: a.f for a in node.attribute}}
    arrays = {role: constants[name] for role, name in inputs.items()}
    return state_of("node", arrays, _NAMES, numbers["epsilon"], numbers["momentum"])


def to_onnx(state: BatchNormState, name: str = "bn", training: bool = False) -> tuple[Any, list[Any]]:
    """A state as a BatchNormalization node for an ONNX graph, and its constants.

    Parameters
    ----------
    state : BatchNormState
        With running statistics.
    name : str
        Of the node; what it reads and writes is called "NAME.x", "NAME.weight", ..., "NAME.y".
    training : bool
        Whether the node normalizes with the batch and has the new running statistics as its second and third
        output, "NAME.running_mean_out" and "NAME.running_var_out" (opset 14 or later; otherwise 9).

    Returns
    -------
    node : onnx.NodeProto
        Its first input and output are to be given the names that they have in the graph.
    initializers : list of onnx.TensorProto, shape (C,) each
        Of the state's dtype; ones and zeros where the state has no gamma or beta.

    Raises
    ------
    ValueError
        When the state has no running statistics, n-D parameters, or numbers beyond the range of float32 or its dtype;
        with `training`, when it keeps its running statistics otherwise than ONNX does: pooled (momentum None) or with
        the unbiased variance.
    TypeError
        When an argument is of the wrong kind.
    ImportError
        When onnx is missing: ``pip install onnx``.

    Notes
    -----
    ONNX keeps epsilon and momentum in float32. The channel axis of x is 1 there. Without `training` a momentum of None
    is left out.

    References
    ----------
    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html

    Examples
    --------
    >>> from nbnorm import exchange
    >>> node, initializers = exchange.to_onnx(state, "layer1.bn1")  # doctest: +SKIP
    >>> node.input[0], node.output[0] = "layer1.conv1.y", "layer1.relu1.x"  # doctest: +SKIP
    """
    arrays = arrays_of_one_axis(state, "ONNX", _NAMES)
    _arguments.instance("name", name, str, 'a name for the node, such as "layer1.bn1"')
    _options.flag("training", training)
    if training and state.momentum is None:
        raise ValueError("state.momentum is None, which ONNX cannot express in training; assign a number")
    if training and state.unbiased:
        raise ValueError(
            "state takes the unbiased variance, ONNX the biased one in training; make it with unbiased=False"
        )
    limits = np.finfo(np.float32)
    if not float(limits.smallest_subnormal) <= state.eps <= float(limits.max):
        raise ValueError(f"state.eps is {state.eps:g}, which ONNX's float32 does not hold; assign another one")
    arrays = {"scale": np.ones(state.shape, state.dtype), "B": np.zeros(state.shape, state.dtype), **arrays}
    inputs, outputs = [f"{name}.{key}" for key in NAMES.values()], [f"{name}.y"]
    attributes: dict[str, Any] = {"epsilon": state.eps}
    if state.momentum is not None:
        attributes["momentum"] = 1 - state.momentum
    if training:  # an attribute of opset 14
        attributes["training_mode"] = 1
        outputs += [f"{inputs[2]}_out", f"{inputs[3]}_out"]
    onnx = _package()
    node = onnx.helper.make_node("BatchNormalization", [f"{name}.x", *inputs], outputs, name, **attributes)
    return node, [onnx.numpy_helper.from_array(arrays[role], key) for role, key in zip(_NAMES, inputs)]


def _by_name(tensors: Iterable[Any], wanted: set[str]) -> dict[str, Any]:
    """The arrays of the TensorProtos of these names."""
    onnx, tensors = _package(), list(tensors)
    for i, tensor in enumerate(tensors):
        _arguments.instance(f"initializers[{i}]", tensor, onnx.TensorProto, _CONSTANTS)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.name in wanted}


def _package() -> Any:
    with _needed.package("An object of ONNX", "pip install onnx (from_onnx also takes a mapping of arrays)"):
        import onnx.helper
        import onnx.numpy_helper
    return onnx
