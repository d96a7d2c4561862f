"""The layer: the functions with the bookkeeping of one place in a network."""

from __future__ import annotations

import copy
from types import EllipsisType
from typing import Any, Literal, Never

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbnorm import _arguments, _device, _names, _options, files
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis
from nbnorm._reuse import Reuse, is_large
from nbnorm.gradients import batch_norm_backward
from nbnorm.inference import batch_norm_inference, saved_of_inference
from nbnorm.parallel import Sync
from nbnorm.renorm import Renorm
from nbnorm.saved import Activation, Saved
from nbnorm.state import BatchNormState
from nbnorm.training import batch_norm_training


@_names.pointing(_names.OF_LAYER)
class BatchNorm:
    """Batch normalization as a layer: call it forwards, then `backward`.

    Parameters
    ----------
    num_features : int or tuple of int
        Number of channels.
    axis : int or tuple of int
        The channel axis of the inputs.
    eps, momentum, use_gamma, use_beta, track_running, unbiased, skip_nonfinite, dtype, device
        As in `BatchNormState`.
    activation
        As in `batch_norm_training`.
    ghost, renorm
        The same, for calls that normalize with the batch.

    Attributes
    ----------
    state : BatchNormState
        Parameters (`state.gamma`, `state.beta`) and running statistics.
    axis : int or tuple of int
        The channel axis.
    activation, ghost, renorm
        As in the constructor. May be assigned between calls.
    training : bool
        Whether a call normalizes with the batch and updates the running statistics, or uses and keeps these; set by
        `train` and `eval`.
    frozen : bool
        Use and keep the running statistics in training mode too, for fine-tuning. At first False.
    debug : bool
        Notice what must not change between a call and its `backward` (see Notes): a call then makes a copy of all that,
        and `backward` compares every byte. At first False.
    dgamma, dbeta : array, shape num_features, or None
        Gradients of the parameters, from the last `backward`.
    dresidual : array, shape (N, C, ...), or None
        Gradient of the residual, if the call had one.

    Warns
    -----
    UserWarning
        When momentum is 0.9 or more and less than 1.

    Notes
    -----
    In every mode a call keeps its x for `backward`, and the last call's only. x must not change before: no ReLU in
    place on it, no next batch in the same array; nor `where` and `weights`, if the call had them, nor y after a call
    with both a residual and an activation. A call in evaluation mode without `where`, `weights`, `nan`, `residual` and
    `sync` keeps no more than x: the state must not change either, since `backward` takes gamma, beta, eps and the
    running statistics as they are then. Every other call keeps the statistics and gamma that it has used, and the state
    may change. `debug` notices all of this.
    In training mode it also keeps its last y and dx, from 32 MiB on and in NumPy, and writes the next ones there when
    nothing else refers to them, no view and no buffer: memory that is new to a process costs as much as a call. `eval`
    lets go of them. So NumPy cannot `resize` such a y, nor write ``bn(x) + skip`` over it, as `residual` does.
    To infer and keep nothing: ``batch_norm_inference(x, layer.state, axis=layer.axis)``.

    Copies and pickles are independent of the original and do not have the last x.

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

    state: BatchNormState
    axis: Axis
    activation: Activation = None
    ghost: int | None = None
    renorm: Renorm | None = None
    training: bool = True
    frozen: bool = False
    dgamma: NDArray | None = None
    dbeta: NDArray | None = None
    dresidual: NDArray | None = None
    debug: bool = False
    # Of the last call, until `backward`; after inference x, and axis and activation as they were.
    _last: Saved | tuple[NDArray, Axis, Activation] | None = None
    _of_training: bool = True  # whether it was in training mode
    _bytes: list[tuple[str, bytes]] | None = None  # with `debug` those of the arrays that must not change
    _results: tuple[Reuse, Reuse] | None = None  # y and dx of training mode

    @_names.asked(_names.OF_CONSTRUCTOR_OF_LAYER)
    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        activation: Activation = None,
        ghost: int | None = None,
        renorm: Renorm | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        use_gamma: bool = True,
        use_beta: bool = True,
        track_running: bool = True,
        unbiased: bool = True,
        skip_nonfinite: bool = False,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
    ) -> None:
        self._set(axis, activation, ghost, renorm)
        self.state = BatchNormState(
            num_features,
            eps=eps,
            momentum=momentum,
            use_gamma=use_gamma,
            use_beta=use_beta,
            track_running=track_running,
            unbiased=unbiased,
            skip_nonfinite=skip_nonfinite,
            dtype=dtype,
            device=device,
        )

    def _set(self, axis: Axis, activation: Activation, ghost: int | None, renorm: Renorm | None) -> None:
        """What is the layer's and not the state's."""
        self.axis = axis
        for name, value in (("activation", activation), ("ghost", ghost), ("renorm", renorm)):
            if value is not None:  # else a subclass may have one
                setattr(self, name, value)

    @classmethod
    def from_state(
        cls, state: BatchNormState, *, axis: Axis = 1, activation: Activation = None, ghost: int | None = None,
        renorm: Renorm | None = None,
    ) -> BatchNorm:  # fmt: skip
        """A layer with this state itself, no copy, in training mode.

        Parameters
        ----------
        state : BatchNormState
            Several layers may have it, which then share parameters and running statistics.
        axis, activation, ghost, renorm
            As in the constructor.

        Raises
        ------
        TypeError, ValueError
            When state is something else, or another argument is one that the constructor refuses.

        Examples
        --------
        >>> import nbnorm
        >>> state = nbnorm.BatchNormState(3)
        >>> nbnorm.BatchNorm.from_state(state, axis=-1).state is state
        True
        """
        layer = cls.__new__(cls)
        layer._set(axis, activation, ghost, renorm)
        layer.state = state
        return layer

    @classmethod
    def load(
        cls, path: files.Path, prefix: str = "", *, axis: Axis = 1, activation: Activation = None,
        ghost: int | None = None, renorm: Renorm | None = None, eps: float | EllipsisType = ...,
        momentum: float | EllipsisType | None = ..., unbiased: bool | EllipsisType = ...,
        num_features: int | tuple[int, ...] | None = None, num_samples: int | NDArray | None = None,
    ) -> BatchNorm:  # fmt: skip
        """A layer with the state of a file, in training mode.

        Arguments and errors are those of `BatchNormState.load` and of `from_state`.

        Examples
        --------
        See `save`.
        """
        state = BatchNormState.load(
            path, prefix, eps=eps, momentum=momentum, unbiased=unbiased, num_features=num_features,
            num_samples=num_samples,
        )  # fmt: skip
        return cls.from_state(state, axis=axis, activation=activation, ghost=ghost, renorm=renorm)

    def save(self, path: files.Path) -> None:
        """Write the state to a file: `BatchNormState.save`. What the layer itself has is not in it: `axis`,
        `activation`, `ghost` and `renorm`, which `load` takes, and `training` and `frozen`, to be set anew.

        Examples
        --------
        >>> import nbnorm, os, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = os.path.join(directory, "layer.npz")
        ...     nbnorm.BatchNorm(3, axis=-1).save(path)
        ...     nbnorm.BatchNorm.load(path, axis=-1).state.num_features
        3
        """
        self.state.save(path)

    def state_dict(self) -> dict[str, NDArray]:
        """Copies of the arrays of the state, under PyTorch's names: `BatchNormState.state_dict`.

        Examples
        --------
        >>> import nbnorm
        >>> nbnorm.BatchNorm(2).state_dict()["weight"]
        array([1., 1.], dtype=float32)
        """
        return self.state.state_dict()

    @_names.closed
    def __call__(
        self, x: NDArray, *, where: NDArray | None = None, weights: NDArray | None = None,
        nan: Literal["propagate", "omit"] = "propagate", residual: NDArray | None = None, sync: Sync | None = None,
        out: NDArray | None = None, **unknown: Never,
    ) -> NDArray:  # fmt: skip
        """Normalize x, and keep it for `backward`.

        Parameters
        ----------
        x : array, shape (N, C, ...)
            As for `batch_norm_training`.
        where, weights, nan, residual, sync, out : optional
            As for `batch_norm_training`. In evaluation mode only `backward` asks which values are missing, and
            without any of the others `out` may be x itself: then there is nothing left for `backward`.

        Returns
        -------
        y : array, shape (N, C, ...)

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `batch_norm_training` and `batch_norm_inference`. The layer is then as it was.
        """
        if unknown:
            raise _names.unexpected(BatchNorm.__call__, unknown, _names.OF_CALL)
        last: Saved | tuple[NDArray, Axis, Activation] | None
        counting = where is not None or weights is not None or nan != "propagate"
        if self.training or sync is not None or counting or residual is not None:
            keep = self.frozen or not self.training
            reuse = self._reuse(0) if out is None and self.training and is_large(x) else None
            out = out if reuse is None else reuse.place(x)
            y, last = batch_norm_training(
                x, self.state, axis=self.axis, use_running=keep, update_running=not keep,
                where=where, weights=weights, nan=nan, residual=residual, activation=self.activation,
                ghost=None if keep else self.ghost, renorm=None if keep else self.renorm, sync=sync, out=out,
            )  # fmt: skip
            if reuse is not None:
                reuse.keep(y)
        else:
            y = batch_norm_inference(x, self.state, axis=self.axis, activation=self.activation, out=out)
            gone = out is not None and kernels_for("x", x).may_overlap(out, x)
            last = None if gone else (x, self.axis, self.activation)
        own = vars(self)  # past __setattr__, which takes its time
        own["_last"], own["_of_training"] = last, self.training
        own["_bytes"] = self._read(last) if self.debug else None
        return y

    def backward(
        self, dy: NDArray, *, param_grads: Literal["local", "global"] = "local", out: NDArray | None = None,
        dresidual_out: NDArray | None = None,
    ) -> NDArray:  # fmt: skip
        """dx of the last call, once; `dgamma`, `dbeta` and `dresidual` are set.

        Parameters
        ----------
        dy, param_grads, out, dresidual_out
            As for `batch_norm_backward`.

        Returns
        -------
        dx : array, shape (N, C, ...)
            With running statistics these are constants: as they are now after a call in evaluation mode that had no
            `where`, `weights`, `nan`, `residual` and `sync`, as they were in the call after every other one.

        Raises
        ------
        RuntimeError
            When there was no call since the last `backward`, or one in evaluation mode and the layer trains now,
            `debug` has seen a change, or another rank failed.
        TypeError, ValueError
            As `batch_norm_backward`. The layer is then as it was.
        """
        last = self._last
        if last is None:
            raise RuntimeError(
                "backward belongs to a call of the layer before it, each to one, and not with out=x. For several "
                "calls: y, saved = batch_norm_training(x, layer.state), then batch_norm_backward(dy, saved)"
            )
        if self.training and not self._of_training:
            raise RuntimeError(
                "backward belongs to the last call, which was in evaluation mode, and the layer trains now: call it "
                "again with the batch of dy"
            )
        if self._bytes is not None and self._bytes != (now := self._read(last)):
            changed = next((name for (name, was), (_, found) in zip(self._bytes, now) if was != found), "state")
            raise RuntimeError(
                f"{changed} has changed since the call, whose gradient is not known any more; give the call a copy, or "
                "change it after backward"
            )
        saved = last if isinstance(last, Saved) else saved_of_inference(self.state, *last)
        reuse = self._reuse(1) if out is None and self.training and is_large(saved.x) else None
        out = out if reuse is None else reuse.place(saved.x)
        found = batch_norm_backward(dy, saved, param_grads=param_grads, out=out, dresidual_out=dresidual_out)
        if reuse is not None:
            reuse.keep(found.dx)
        own = vars(self)  # past __setattr__
        own["dgamma"], own["dbeta"], own["dresidual"] = found.dgamma, found.dbeta, getattr(found, "dresidual", None)
        own["_last"] = None
        return found.dx

    def _reuse(self, which: int) -> Reuse:
        """Of y (0) or dx (1)."""
        found = self._results
        if found is None:
            found = vars(self)["_results"] = Reuse(), Reuse()
        return found[which]

    def _read(self, last: Saved | tuple[NDArray, Axis, Activation] | None) -> list[tuple[str, bytes]]:
        """What `backward` is going to read, by name."""
        state, used = self.state, list[tuple[str, Any]]()
        if isinstance(last, Saved):
            for one in last.groups or [last]:
                used += [("x", one._flat), ("where", one._where), ("weights", one._weights), ("y", one.y)]
        elif last is not None:
            used = [("x", last[0]), ("state.gamma", state.gamma), ("state.beta", state.beta),
                    ("state.running_mean", state.running_mean), ("state.running_var", state.running_var),
                    ("state.eps", np.float64(state.eps))]  # fmt: skip
        return [(name, _device.host(array).tobytes()) for name, array in used if array is not None]

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalize with the batch from now on, unless `frozen`. Returns the layer."""
        _options.flag("mode", mode)
        self.training = bool(mode)
        if not mode:
            self._results = None
        return self

    def eval(self) -> BatchNorm:
        """Normalize with the running statistics from now on. Returns the layer."""
        return self.train(False)

    def __repr__(self) -> str:
        frozen = ", frozen=True" if self.frozen else ""
        beside = {"activation": self.activation, "ghost": self.ghost, "renorm": self.renorm}
        given = "".join(f", {name}={value!r}" for name, value in beside.items() if value is not None)
        return f"BatchNorm(axis={self.axis}, training={self.training}{frozen}{given}, state={self.state!r})"

    def __copy__(self) -> BatchNorm:
        """As a deep copy: two layers with one state would train it both."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the last input and results."""
        return {**vars(self), "_last": None, "_bytes": None, "_results": None}

    def __setattr__(self, name: str, value: Any) -> None:
        _names.refuse_new(self, BatchNorm, name, _names.OF_LAYER)
        if not isinstance(getattr(type(self), name, None), property):  # which a subclass has made its own
            value = _checked(name, value)
        object.__setattr__(self, name, value)


def _checked(name: str, value: Any) -> Any:
    """The value of an attribute, which must be what the constructor takes."""
    if name in ("training", "frozen", "debug"):
        _options.flag(name, value)
    elif name == "axis":
        _arguments.axes_of(value)
    elif name == "activation":
        _options.activation(value)
    elif name == "ghost" and value is not None:
        return _options.ghost(value)
    elif name == "renorm" and value is not None:
        _arguments.instance("renorm", value, Renorm, "a nbnorm.Renorm")
    elif name == "state":
        _arguments.instance("state", value, BatchNormState, "a nbnorm.BatchNormState")
    return value
