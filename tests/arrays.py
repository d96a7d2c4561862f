"""Arrays of other libraries: stand-ins that behave as theirs do, so that the default suite needs none of them."""

from __future__ import annotations

import numpy as np


class Series:
    """pandas: has `get` and `dtype`, as CuPy arrays have."""

    def __init__(self, values):
        self.values = np.array(values)
        self.dtype, self.get = self.values.dtype, dict(enumerate(values)).get

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


class Tensor:
    """PyTorch on the CPU: becomes an array by itself only without a gradient, and never from bfloat16."""

    def __init__(self, values, dtype="torch.float32", requires_grad=False):
        self.values, self.dtype, self.requires_grad = values, dtype, requires_grad

    def detach(self):
        return Tensor(self.values, self.dtype)

    def float(self):
        return Tensor(self.values, requires_grad=self.requires_grad)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return np.array(self.values, np.float32)


class OnlyDlpack:
    """An array that NumPy's asarray takes for an object."""

    def __init__(self, values):
        self.values = np.array(values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


FOREIGN = {
    "list": list,
    "big-endian": lambda values: np.array(values, ">f8"),
    "read-only": lambda values: np.broadcast_to(np.array([values]), (2, 3))[0],
    "Series": Series,
    "tensor": Tensor,
    "parameter": lambda values: Tensor(values, requires_grad=True),
    "bfloat16 parameter": lambda values: Tensor(values, "torch.bfloat16", requires_grad=True),
    "DLPack": OnlyDlpack,
}
