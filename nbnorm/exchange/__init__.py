"""Batch normalizations of Keras, Flax and ONNX: their arrays and numbers in, a state out, and back.

What is different there, and is translated here:

- their momentum is the weight of the **old** statistics, nbnorm's that of the new batch: 0.99 is 0.01;
- their running variance takes the biased variance of a batch: `unbiased` is False;
- gamma or beta may be missing in Keras (`scale`, `center`) and Flax (`use_scale`, `use_bias`), never in ONNX;
- they count no batches: what comes from them has `num_batches` 0;
- their running statistics have the dtype of the parameters, nbnorm's are float64: on the way out they are rounded
  once to `state.dtype`, and nothing else is.

PyTorch needs no translation: `BatchNormState.state_dict` and `from_state_dict`. None of these packages is imported, but
onnx by `to_onnx` and for TensorProtos.
"""

from nbnorm.exchange.flax import from_flax, to_flax
from nbnorm.exchange.keras import from_keras, to_keras
from nbnorm.exchange.onnx import from_onnx, to_onnx

__all__ = ["from_flax", "from_keras", "from_onnx", "to_flax", "to_keras", "to_onnx"]
