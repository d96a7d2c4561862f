"""The layer: the functions with the bookkeeping of one place in a network."""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike, NDArray

from nbnorm._layout import Axis
from nbnorm.functional import batch_norm_inference, batch_norm_training
from nbnorm.gradients import batch_norm_backward
from nbnorm.saved import Saved
from nbnorm.state import BatchNormState


class BatchNorm:
    """Batch normalization as a layer: call it forwards, then `backward`.

    Parameters
    ----------
    num_features : int or tuple of int
        Number of channels.
    axis : int or tuple of int
        The channel axis of the inputs.
    eps, momentum, use_gamma, use_beta, track_running, skip_nonfinite, dtype, device
        As in `BatchNormState`.

    Attributes
    ----------
    state : BatchNormState
        Parameters (`state.gamma`, `state.beta`) and running statistics.
    training : bool
        Whether a call normalizes with the batch (and updates the running statistics), or with the running statistics.
    dgamma, dbeta : array, shape num_features, or None
        Gradients of the parameters, from the last `backward`.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> bn = nbnorm.BatchNorm(2)
    >>> y = bn(np.array([[1, 10], [3, 30]], np.float32))
    >>> dx = bn.backward(np.ones_like(y))
    >>> bn.dbeta
    array([2., 2.], dtype=float32)
    >>> bn.eval()(np.zeros((1, 2), np.float32)).shape
    (1, 2)
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        use_gamma: bool = True,
        use_beta: bool = True,
        track_running: bool = True,
        skip_nonfinite: bool = False,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
    ) -> None:
        self.state = BatchNormState(
            num_features,
            eps=eps,
            momentum=momentum,
            use_gamma=use_gamma,
            use_beta=use_beta,
            track_running=track_running,
            skip_nonfinite=skip_nonfinite,
            dtype=dtype,
            device=device,
        )
        self.axis = axis
        self.training = True
        self.dgamma: NDArray | None = None
        self.dbeta: NDArray | None = None
        self._saved: Saved | None = None

    def __call__(self, x: NDArray) -> NDArray:
        """y, shape of x. In training mode the input is kept for `backward`."""
        if not self.training:
            self._saved = None
            return batch_norm_inference(x, self.state, axis=self.axis)
        y, self._saved = batch_norm_training(x, self.state, axis=self.axis)
        return y

    def backward(self, dy: NDArray) -> NDArray:
        """dx for the last call in training mode; `dgamma` and `dbeta` are set.

        Raises
        ------
        RuntimeError
            When the last call was none in training mode.
        """
        if self._saved is None:
            raise RuntimeError("backward needs a call in training mode before it: layer.train(); y = layer(x)")
        dx, self.dgamma, self.dbeta = batch_norm_backward(dy, self._saved)
        return dx

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalize with the batch from now on. Returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Normalize with the running statistics from now on. Returns the layer."""
        return self.train(False)

    def __repr__(self) -> str:
        return f"BatchNorm(axis={self.axis}, training={self.training}, state={self.state!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the last input."""
        return {**vars(self), "_saved": None}
