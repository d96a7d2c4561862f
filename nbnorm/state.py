"""The state of a batch normalization: parameters, running statistics, counters."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbnorm import _arguments, _content, _conventions, _device, _names, _options, _snapshot, _state_dict, _update, files
from nbnorm._attributes import counted, parameter, samples, statistic
from nbnorm._batch_stats import BatchStats
from nbnorm._running import BATCHES, SKIPPED, Running


@_names.pointing(_names.OF_STATE)
class BatchNormState:
    """Gamma, beta and the running statistics of one batch normalization.

    Parameters
    ----------
    num_features : int or tuple of int
        Number of channels C. A tuple, when `axis` is one: a normalization per activation, with n-D parameters.
    eps : float
        Added to the variance, in the units of x squared.
    momentum : float or None
        Weight of the **new** batch in the running statistics, 0 to 1, as in PyTorch. Keras, Flax and ONNX call the
        weight of the old ones so: their 0.99 is 0.01 here. None: exact pooled statistics of every value seen.
    use_gamma, use_beta : bool
        Whether there is a learned scale, a learned shift.
    track_running : bool
        Whether there are running statistics.
    unbiased : bool
        Whether `running_var` takes the unbiased variance of a batch, m2/(count - 1), or the biased one, m2/count; with
        momentum None, that of all values.
    skip_nonfinite : bool
        Leave a batch out of the running statistics when the mean or the variance of some channel is NaN or infinite. It
        is not counted, but in `num_skipped`. It can be set later.
    dtype : float32 or float64
        Of gamma, beta and their gradients; independent of the dtype of x.
    device : str
        Where the arrays are: "cpu", "cuda" (the current GPU) or "cuda:1". NumPy arrays go with a state on the CPU,
        CuPy arrays with one on their GPU.

    Attributes
    ----------
    gamma, beta : array, shape num_features, or None
        Learned scale and shift. Assign them or update them in place (``state.gamma -= 0.1 * dgamma``).
    running_mean, running_var : float64 array, shape num_features, or None
        Running statistics, in the units of x and of x squared. A value of `running_var` is that of samples,
        divided by count - 1, unless `unbiased` is False.
    num_batches, num_samples : int
        How many batches, and values per channel, are in the running statistics. They can be set: with momentum None,
        statistics that you assign need a `num_samples`.
    num_skipped : int
        How many batches `skip_nonfinite` has left out.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range; `skip_nonfinite` without running statistics.
    ImportError, RuntimeError
        When the device is a GPU and CuPy or the driver is missing.

    Warns
    -----
    UserWarning
        When momentum is 0.9 or more and less than 1, here or assigned: as a weight of the old statistics it would be
        usual.

    Notes
    -----
    Copies and pickles are independent of the original. Several threads may train with one state on the CPU: each batch
    is folded in as a whole. A state on a GPU changes in the order of the stream that is current when it is used:
    use it on one stream, or synchronize between them. Reading a counter or assigning a running statistic waits for the
    GPU.

    What is assigned may be anything that NumPy reads, such as a list, a Series or a tensor on the CPU; a state on a GPU
    takes CuPy arrays of that GPU too. A negative variance is refused, NaN and infinity are not; what is written in
    place (``state.running_var[...] = -1``) is not looked at.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import nbnorm
    >>> state = nbnorm.BatchNormState(3)
    >>> state
    BatchNormState(3, eps=1e-05, momentum=0.1, dtype=float32, device='cpu', num_batches=0)
    >>> state.gamma *= 2
    >>> state.gamma
    array([2., 2., 2.], dtype=float32)
    """

    @_names.asked(_names.OF_CONSTRUCTORS)
    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
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
        flags = {"use_gamma": use_gamma, "use_beta": use_beta, "track_running": track_running, "unbiased": unbiased}
        for name, value in flags.items():
            _options.flag(name, value)
        self._num_features = _options.num_features(num_features)
        self._dtype = _options.parameter_dtype(dtype)
        self._device = _device.resolve(device)
        self.eps = eps
        self._momentum = _options.momentum(momentum)
        shape, xp = self.shape, self._xp
        with _device.current(self._device):
            self._gamma = xp.ones(shape, self._dtype) if use_gamma else None
            self._beta = xp.zeros(shape, self._dtype) if use_beta else None
            self._running = Running.fresh(shape, xp, 1.0 if unbiased else 0.0) if track_running else None
        self.skip_nonfinite = skip_nonfinite
        _options.warn_of_momentum(self._momentum)  # where nothing is wrong that an error would be about

    @classmethod
    def like(cls, library: str, num_features: int | tuple[int, ...], **changes: Any) -> BatchNormState:
        """A new state that trains as another library's layer does by default.

        Parameters
        ----------
        library : "pytorch", "keras", "flax", "onnx" or "chainer"
            Whose eps, momentum and running variance to take.
        num_features : int or tuple of int
            As in the constructor.
        **changes
            Arguments of the constructor, in its sense: `momentum` is the weight of the new batch, also where the
            library means the old one by it.

        Raises
        ------
        TypeError, ValueError
            For an unknown library, and as in the constructor.

        Notes
        -----
        Chainer trains on one value per channel, nbnorm on no fewer than two. Arrays of trained layers come with
        `from_state_dict` (PyTorch) and `nbnorm.exchange`.

        Examples
        --------
        >>> import nbnorm
        >>> state = nbnorm.BatchNormState.like("keras", 3)
        >>> state.eps, state.momentum, state.unbiased
        (0.001, 0.01, False)
        >>> nbnorm.BatchNormState.like("flax", 3, momentum=0.1, use_beta=False).beta is None
        True
        """
        return cls(num_features, **_conventions.of(library) | changes)

    # ---- what it is

    @property
    def num_features(self) -> int | tuple[int, ...]:
        return self._num_features

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters and of the running statistics."""
        return self._num_features if isinstance(self._num_features, tuple) else (self._num_features,)

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    @property
    def device(self) -> str:
        return self._device

    @property
    def _xp(self) -> Any:
        return _device.library(self._device)

    def to(self, device: str) -> BatchNormState:
        """The state with its arrays on `device`: itself when they are there, otherwise a copy.

        Parameters
        ----------
        device : str
            As in the constructor.

        Examples
        --------
        >>> import nbnorm
        >>> state = nbnorm.BatchNormState(3)
        >>> state.to("cpu") is state
        True
        """
        device = _device.resolve(device)
        if device == self._device:
            return self
        moved = type(self).__new__(type(self))
        moved.__setstate__({**self.__getstate__(), "_device": device})
        return moved

    def __repr__(self) -> str:
        return (
            f"BatchNormState({self._num_features}, eps={self._eps:g}, momentum={self._momentum}, "
            f"dtype={self._dtype}, device='{self.device}', num_batches={self.num_batches})"
        )

    # ---- what can be set

    @property
    def eps(self) -> float:
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._eps = _options.eps(value)

    @property
    def momentum(self) -> float | None:
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        value = _options.momentum(value)
        _options.warn_of_momentum(value)
        self._momentum = value

    gamma, beta = parameter("gamma"), parameter("beta")
    running_mean, running_var = statistic("running_mean"), statistic("running_var")

    num_batches = counted(BATCHES, "num_batches", "Batches in the running statistics.")
    num_samples = samples()

    @property
    def num_skipped(self) -> int:
        return 0 if self._running is None else self._running.counter(SKIPPED)

    @property
    def skip_nonfinite(self) -> bool:
        return self._running is not None and self._running.skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        _options.flag("skip_nonfinite", value)
        if value or self._running is not None:  # without running statistics nothing is skipped
            self._demand_running().skip_nonfinite = bool(value)

    @property
    def unbiased(self) -> bool | None:
        """Whether `running_var` takes the unbiased variance; None where there is no `running_var`."""
        return None if self._running is None else self._running.ddof == 1

    # ---- running statistics

    def reset_running(self) -> None:
        """Forget every batch: mean 0, variance 1, counters 0. Gamma and beta stay.

        Examples
        --------
        >>> import numpy as np, nbnorm
        >>> state = nbnorm.BatchNormState(2)
        >>> y, saved = nbnorm.batch_norm_training(np.ones((4, 2), np.float32), state)
        >>> state.reset_running()
        >>> state.running_mean, state.num_batches
        (array([0., 0.]), 0)
        """
        if self._running is not None:
            self._running.reset()

    def update(self, stats: BatchStats) -> None:
        """Fold the statistics of a batch into the running ones, as a training step does with those of its batch.

        Parameters
        ----------
        stats : BatchStats
            Of `batch_stats` or `merge_stats`, on the device of the state.

        Raises
        ------
        TypeError, ValueError
            When stats is something else, does not fit the state, or has fewer than 2 values per channel (with
            momentum None any number will do) or more than 2**53; when the state has no running statistics, or with
            momentum None some without a count.

        Notes
        -----
        So a file that does not fit into memory is read in pieces. With momentum None the order and the size of the
        pieces do not matter: the result is that of everything at once, but for the rounding of each mean to float64
        (docs/numerics.md: at mean/std 1e8 some 1e-9 of the variance). On a GPU the call waits for `stats.count`.

        Examples
        --------
        >>> import numpy as np, nbnorm
        >>> x = np.arange(12.0).reshape(6, 2)  # or np.memmap("x.dat", np.float32, "r", shape=(rows, 2))
        >>> state = nbnorm.BatchNormState(2, momentum=None)
        >>> for start in range(0, len(x), 4):
        ...     state.update(nbnorm.batch_stats(x[start : start + 4]))
        >>> state.running_mean, state.running_var
        (array([5., 6.]), array([14., 14.]))
        """
        _arguments.instance("stats", stats, BatchStats, "what nbnorm.batch_stats or merge_stats returned")
        _update.fold_in(stats, self._demand_running(), self._momentum)

    def as_affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inference as one map, y = scale*x + shift: for folding into a neighbouring linear map.

        Returns
        -------
        scale, shift : float64 array, shape num_features

        Raises
        ------
        ValueError
            When the state has no running statistics.

        Notes
        -----
        In this form the mean is subtracted after the scaling: where mean/std is large, y loses as many digits as
        that ratio has. `batch_norm_inference` does not.

        Examples
        --------
        >>> import nbnorm
        >>> state = nbnorm.BatchNormState(1, eps=1e-12)
        >>> state.running_mean, state.running_var = [10.0], [4.0]
        >>> [float(v.round(9)[0]) for v in state.as_affine()]
        [0.5, -5.0]
        """
        running = self._demand_running().copy()
        with _device.current(self._device):
            scale = 1 / self._xp.sqrt(running.var + self._eps)  # Eq. 5 and 6, of x itself and of arrays
            if self._gamma is not None:
                scale *= self._gamma
            shift = -running.mean * scale
            if self._beta is not None:
                shift += self._beta
        return scale, shift

    def _demand_running(self) -> Running:
        if self._running is None:
            raise ValueError(
                "the state has no running statistics (track_running=False), which this needs; make it with "
                "track_running=True (batch_norm_training without use_running and renorm normalizes with the batch's)"
            )
        return self._running

    def _demand_count(self) -> None:
        """What pooling needs, where there is something to pool."""
        if self._momentum is None and self._running is not None:
            self._running.demand_count()

    # ---- elsewhere

    def state_dict(self) -> dict[str, NDArray]:
        """Copies of the arrays and counters, under PyTorch's names.

        Returns
        -------
        dict
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked", those that the state has: as tensors
            they load into ``torch.nn.BatchNorm*`` with strict=True. With momentum None also "num_samples_tracked",
            which exact pooling needs and PyTorch does not have.

        Examples
        --------
        >>> import nbnorm
        >>> sorted(nbnorm.BatchNormState(2, use_beta=False).state_dict())
        ['num_batches_tracked', 'running_mean', 'running_var', 'weight']
        """
        return _state_dict.of(self.__getstate__())

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        prefix: str = "",
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        unbiased: bool = True,
        num_features: int | tuple[int, ...] | None = None,
        num_samples: int | NDArray | None = None,
    ) -> BatchNormState:
        """A state from a dictionary with PyTorch's names: an own one, or a layer's out of a whole network's.

        Parameters
        ----------
        state_dict : mapping of str to array
            As `state_dict` gives it. Whatever NumPy reads counts as an array: lists, Series, tensors on the CPU.
        prefix : str
            What the names begin with, such as "layer1.0.bn1.".
        eps, momentum, unbiased
            As in the constructor; PyTorch does not store them with the arrays.
        num_features : int or tuple of int, optional
            Needed where the arrays have several dimensions.
        num_samples : int or array, shape num_features, optional
            How many values per channel the running statistics are of, which PyTorch does not store and momentum None
            needs. With 0 the next batch replaces them.

        Raises
        ------
        TypeError, ValueError
            When state_dict is none, nothing is under the prefix, a name is unknown, arrays do not fit each other, a
            running variance is negative, a counter is no whole number, only one of running_mean and running_var is
            there, or momentum is None and nobody says how many values there were.

        Examples
        --------
        >>> import numpy as np, nbnorm
        >>> arrays = {"bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2), "fc.weight": np.ones((2, 2))}
        >>> nbnorm.BatchNormState.from_state_dict(arrays, "bn.").gamma is None
        True
        """
        momentum = _options.momentum(momentum)
        found = _state_dict.content(state_dict, prefix, num_features, eps=eps, momentum=momentum, unbiased=unbiased)
        state = _content.made(cls, found, num_samples)
        state._demand_count()
        _options.warn_of_momentum(momentum)
        return state

    def save(self, path: files.Path) -> None:
        """Write the state to a file, at one moment: there is always the old file or the new one.

        Parameters
        ----------
        path : str or os.PathLike
            Ends in ".npz", or in ".safetensors" when the package `safetensors` is installed.

        Raises
        ------
        ValueError
            When the name ends otherwise, or a value is NaN or infinite: `load` would refuse the file.
        OSError
            When the file cannot be written. What was there before is still there.

        Notes
        -----
        A file that is there keeps its permissions. A process that is killed while it saves may leave a file
        ``.nbnorm-*.tmp`` beside the path.

        Examples
        --------
        >>> import nbnorm, os, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = os.path.join(directory, "state.npz")
        ...     nbnorm.BatchNormState(3, eps=1e-3).save(path)
        ...     nbnorm.BatchNormState.load(path)
        BatchNormState(3, eps=0.001, momentum=0.1, dtype=float32, device='cpu', num_batches=0)
        """
        own = self.__getstate__()
        files.save(path, _content.arrays(own), _content.arguments(own))

    @classmethod
    def load(
        cls,
        path: files.Path,
        prefix: str = "",
        *,
        eps: float | EllipsisType = ...,
        momentum: float | EllipsisType | None = ...,
        unbiased: bool | EllipsisType = ...,
        num_features: int | tuple[int, ...] | None = None,
        num_samples: int | NDArray | None = None,
    ) -> BatchNormState:
        """A state from a file of `save`, or a layer from a .safetensors file of a PyTorch network.

        Parameters
        ----------
        path : str or os.PathLike
            Ends in ".npz" or ".safetensors".
        prefix : str
            What the names of the layer begin with, such as "layer1.0.bn1."; .safetensors only.
        eps, momentum, unbiased : optional
            Of a file that `save` did not write, which says nothing of them: those of the constructor, unless they are
            given. A file of `save` has its own.
        num_features, num_samples
            As in `from_state_dict`, for a file that `save` did not write.

        Raises
        ------
        StateFileError
            When the file is damaged, hostile or of another kind, or has no such layer.
        TypeError, ValueError
            When the name ends otherwise, or another argument is wrong or one that the file has; when momentum is None
            and nobody says how many values there were.
        OSError
            When the file is not there or cannot be read.

        Notes
        -----
        Nothing in a file is executed. Names, dtypes, shapes and sizes are checked before an array is read.

        Examples
        --------
        See `save`.
        """
        _state_dict.check_prefix(prefix)
        if num_features is not None:
            num_features = _options.num_features(num_features)
        if eps is not ...:
            _options.eps(eps)
        if momentum is not ...:
            _options.momentum(momentum)
        if unbiased is not ...:
            _options.flag("unbiased", unbiased)
        given: dict[str, Any] = {"eps": eps, "momentum": momentum, "unbiased": unbiased}
        given = {name: value for name, value in given.items() if value is not ...}
        with files.refusing(path, prefix):
            arrays, arguments = files.read(path, prefix, num_features)
            if arguments is None:
                # Not yet with momentum None, which may need num_samples, or with one to be warned of.
                state = cls.from_state_dict(arrays, num_features=num_features, **given | {"momentum": 0.1})
            else:
                state = _content.made(cls, _content.of(arguments, arrays), None)
        if arguments is not None:
            files.refuse_beside(given)
        if num_samples is not None:
            state.num_samples = num_samples
        if momentum is not ...:
            state.momentum = momentum
            state._demand_count()
        return state

    def __setattr__(self, name: str, value: Any) -> None:
        _names.refuse_new(self, BatchNormState, name, _names.OF_STATE)
        _names.refuse_fixed(self, name, _names.FIXED_OF_STATE)
        object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return _snapshot.taken(vars(self))

    def __setstate__(self, own: dict[str, Any]) -> None:
        vars(self).update(_snapshot.restored(own))
