"""scikit-learn: its StandardScaler for arrays of any number of dimensions. Needs the extra `sklearn`."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbnorm import _arguments, _device, _needed, _outputs
from nbnorm._layout import Axis
from nbnorm._moments import Moments, merged, of_running
from nbnorm._standardize import EPSILON, affine, dense, is_finite, mean_and_rest, present_moments, scale_of, var_of
from nbnorm.state import BatchNormState

with _needed.package("nbnorm.sklearn", 'pip install "scikit-learn>=1.6"'):
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.validation import check_is_fitted, validate_data

    from nbnorm import _sklearn_arguments


def _has_columns(scaler: StandardScaler) -> bool:
    """Whether its channels are the columns of tables, as far as is known."""
    if getattr(scaler, "_columns", True):
        return True
    raise AttributeError("what this scaler has seen had no columns for channels; a clone() has seen nothing")


class StandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Subtract the mean of each channel and divide by its standard deviation.

    scikit-learn's estimator of this name, for arrays of any number of dimensions and any channel axis, in float32
    without loss at any mean/std.

    Parameters
    ----------
    axis : int or tuple of int
        The channel axis of X: statistics are over all other ones. The default, the last one, is the features of a
        table.
    with_mean : bool
        Subtract the mean.
    with_std : bool
        Divide by the standard deviation.
    ddof : float
        The variance is m2/(count - ddof), as that of `numpy.var`: 0, which scikit-learn has, or 1. NaN where no more
        than ddof values count.
    copy : bool
        Whether results are new arrays, or X itself where it is a writable array of floats.

    Attributes
    ----------
    mean_ : float64 array, shape of the channel axes, or None
        None when neither mean nor standard deviation is asked for.
    var_ : float64 array, shape of the channel axes, or None
        In the units of X squared; None without `with_std`.
    scale_ : float64 array, shape of the channel axes, or None
        What X is divided by: the square root of `var_`, 1 for constant channels; None without `with_std`.
    n_samples_seen_ : int, float or array, shape of the channel axes
        Values of each channel, which a table has as many as rows; an array where channels differ because of NaN.
        With weights their sum, a float where it is no whole number.
    n_features_in_ : int
        Number of channels.
    feature_names_in_ : array of str
        The columns of a DataFrame.

    Notes
    -----
    Means and variances are those of scikit-learn up to rounding. Where the two differ:

    - `transform` takes the mean as it is; scikit-learn rounds it to float32 before it subtracts.
    - A channel is constant when its standard deviation is at most 2**-52 times its mean. scikit-learn takes for
      constant what it could not tell from a rounding of its own sums, which is more the more rows there are.
    - Infinity is an error in `fit`. In `transform` it stays infinity; scikit-learn reads X once more to refuse it.
    - A negative weight is an error. Sparse matrices are not taken, and nothing lazy is computed: what Dask has is an
      error that names the ways.
    - `set_output` makes DataFrames of tables whose channels are their columns. After `fit` on anything else results are
      arrays, and there is no `set_output` and no `get_feature_names_out`: call it before. A scaler of tables that is
      given images then is pandas' error.
    - Statistics of a channel that had no value yet are NaN, as there, and become those of the first values that come.

    CuPy arrays are taken where they are, with or without scikit-learn's `array_api_dispatch`; the attributes are
    CuPy arrays then, and later calls need arrays of that device.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The American Statistician
    37 (1983) 242-247.

    Examples
    --------
    >>> import numpy as np
    >>> from nbnorm.sklearn import StandardScaler
    >>> StandardScaler().fit_transform([[0.0, 5.0], [2.0, 5.0]])
    array([[-1.,  0.],
           [ 1.,  0.]])
    >>> images = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2)  # (N, H, W, C)
    >>> scaler = StandardScaler().fit(images)
    >>> scaler.mean_, scaler.n_samples_seen_
    (array([23., 24.]), 24)
    """

    def __init__(
        self, *, axis: Axis = -1, with_mean: bool = True, with_std: bool = True, ddof: float = 0, copy: bool = True
    ) -> None:
        self.axis = axis
        self.with_mean = with_mean
        self.with_std = with_std
        self.ddof = ddof
        self.copy = copy

    def fit(self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """The statistics of X.

        Parameters
        ----------
        X : array, shape (N, ..., C)
            At least 2-D. float16, bfloat16, float32 and float64 stay what they are, other numbers become float64. NaN
            is a missing value.
        y : None
            Ignored.
        sample_weight : array, shape (N,), optional
            How often the values at an index of axis 0 count.

        Returns
        -------
        StandardScaler
            Itself.

        Raises
        ------
        TypeError, ValueError
            When X or the weights are lazy, X has an infinite value or fewer than two dimensions, a weight is negative
            or not finite, there are weights where axis 0 is a channel axis, or a parameter is out of range.

        Notes
        -----
        One read of X; two where it has a NaN.
        """
        return self._fitted(X, sample_weight, None)

    def partial_fit(self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """The statistics of X and of all that came before, as if it had been one array.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        StandardScaler
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit`, and when X has other channels than before; the statistics are then what they were.

        Notes
        -----
        The order and the size of the pieces do not matter: their means travel as two numbers, so that no digit is lost
        where the mean is large.
        """
        return self._fitted(X, sample_weight, getattr(self, "_stats", None))

    def transform(self, X: ArrayLike, copy: bool | None = None) -> Any:
        """``(X - mean_)/scale_``.

        Parameters
        ----------
        X : array, shape (N, ..., C)
            As in `fit`, with the channels it had there.
        copy : bool, optional
            Instead of the constructor's.

        Returns
        -------
        array, shape (N, ..., C)
            dtype of X, or float64; a DataFrame where `set_output` says so.

        Raises
        ------
        TypeError, ValueError
            When X is lazy or has other channels than in `fit`, `copy` is no flag, or False for an X whose values share
            memory; when `mean_` or `scale_` was assigned and is neither a number for each channel nor one for all.

        Notes
        -----
        One read of X and one write, in between float32 but for float64 X.
        """
        check_is_fitted(self)
        self._names_checked(X)
        mean, scale, channels = self._numbers()
        with _device.current(_device.of(channels)):
            factor = None if scale is None else 1 / scale
            rest = None if mean is None else getattr(self, "_mean_rest", None)
            if rest is not None and rest.shape != mean.shape:
                rest = None
            if rest is not None:
                # Of no use beside a mean_ that somebody has assigned; beside the own one at most half a unit of it.
                rest = -rest * (abs(rest) <= EPSILON / 2 * abs(mean)) * (1 if factor is None else factor)
        return self._mapped(X, copy, channels, mean, factor, rest)

    def inverse_transform(self, X: ArrayLike, copy: bool | None = None) -> Any:
        """``X*scale_ + mean_``: what `transform` made X of.

        Parameters
        ----------
        X : array, shape (N, ..., C)
            As in `transform`.
        copy : bool, optional
            Instead of the constructor's.

        Returns
        -------
        array, shape (N, ..., C)
            dtype of X, or float64.

        Raises
        ------
        TypeError, ValueError
            When X is lazy or has other channels than in `fit`, `copy` is no flag, or False for an X whose values share
            memory; when `mean_` or `scale_` was assigned and is neither a number for each channel nor one for all.
        """
        check_is_fitted(self)
        mean, scale, channels = self._numbers()
        return self._mapped(X, copy, channels, None, scale, mean)

    def to_state(self, *, eps: float = 1e-12) -> BatchNormState:
        """A state with these statistics as its running ones, for `nbnorm.batch_norm_inference` and further training.

        They are those of `fit` and `partial_fit`; an attribute that was assigned, such as `mean_`, is not among them.

        Parameters
        ----------
        eps : float
            Of the state, in the units of X squared: it takes the place of the scale 1 of constant channels.

        Returns
        -------
        BatchNormState
            Without gamma and beta, momentum None: batches that come are pooled with what the scaler has seen.

        Raises
        ------
        ValueError
            When mean or standard deviation was not asked for, or `ddof` is neither 0 nor 1.

        Examples
        --------
        >>> import numpy as np
        >>> from nbnorm.sklearn import StandardScaler
        >>> StandardScaler().fit(np.array([[1.0], [3.0]])).to_state().running_mean
        array([2.])
        """
        check_is_fitted(self)
        if not (self.with_mean and self.with_std) or self.ddof not in (0, 1):
            raise ValueError(
                f"with_mean={self.with_mean}, with_std={self.with_std}, ddof={self.ddof!s:.20}; "
                "a state takes the mean and the standard deviation, with ddof 0 or 1"
            )
        state = BatchNormState(
            self._stats.m2.shape if isinstance(self.axis, tuple) else self.n_features_in_,
            eps=eps, momentum=None, use_gamma=False, use_beta=False, unbiased=self.ddof == 1,
            device=_device.of(self._stats.m2),
        )  # fmt: skip
        state.update(self._stats.stats)
        return state

    @classmethod
    def from_state(cls, state: BatchNormState, *, axis: Axis | None = None) -> Self:
        """A fitted scaler with the running statistics of a state.

        Parameters
        ----------
        state : BatchNormState
            Its gamma, beta and eps are not part of the scaler.
        axis : int or tuple of int, optional
            The channel axis of X; the last one, or as many as the state has, unless it is said.

        Returns
        -------
        StandardScaler
            With ddof 1 where the state has the unbiased variance.

        Raises
        ------
        TypeError, ValueError
            When state is none, has no running statistics, or nobody has said how many values they are of.

        Examples
        --------
        >>> import numpy as np, nbnorm
        >>> from nbnorm.sklearn import StandardScaler
        >>> state = nbnorm.BatchNormState(2, momentum=None)
        >>> state.update(nbnorm.batch_stats(np.array([[1.0, 5.0], [3.0, 7.0]])))
        >>> StandardScaler.from_state(state).var_
        array([2., 2.])
        """
        _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
        running = state._demand_running().copy()
        if not np.any(_device.host(running.num_samples())):
            raise ValueError("the running statistics of the state are of 0 values; set state.num_samples")
        if axis is None:
            axis = tuple(range(-running.mean.ndim, 0)) if isinstance(state.num_features, tuple) else -1
        scaler = cls(axis=axis, ddof=int(running.ddof))
        scaler._columns = axis == -1
        return scaler._show(of_running(running))

    @available_if(_has_columns)  # scikit-learn makes DataFrames of what has it
    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """The names of the columns: those of the DataFrame of `fit`, or x0, x1, ...

        Parameters
        ----------
        input_features : array of str, shape (C,), optional
            Names for columns that had none; otherwise those of `fit`.

        Returns
        -------
        array of str, shape (C,)

        Raises
        ------
        AttributeError
            When the channels of what `fit` has seen are not the columns of a table.
        """
        return super().get_feature_names_out(input_features)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags

    def _fitted(self, X: Any, sample_weight: Any, before: Moments | None) -> Self:
        _sklearn_arguments.options(self)
        if before is not None:
            self._names_checked(X)
        values = _sklearn_arguments.values(X, self)
        axes = _arguments.channels(values.shape, self.axis, "X")
        if before is not None:
            _sklearn_arguments.channels_as(before.m2, values, axes)
        stats = _statistics(values, axes, _sklearn_arguments.weights(sample_weight, values, axes))
        columns = values.ndim == 2 and axes == (1,)
        if before is not None:
            self._columns = columns and getattr(self, "_columns", True)
            return self._show(merged(before, stats))
        validate_data(self, X, reset=True, skip_check_array=True, ensure_2d=False)  # sets or removes feature_names_in_
        self._columns = columns
        return self._show(stats)

    def _show(self, stats: Moments) -> Self:
        """The attributes, of the statistics of all that was seen."""
        self._stats = stats
        self.n_features_in_ = math.prod(stats.m2.shape)
        (mean, rest), count = mean_and_rest(stats), stats.count
        var = var_of(count, stats.m2, self.ddof)
        with _device.current(_device.of(stats.m2)):
            self.mean_: Any = mean if self.with_mean or self.with_std else None
            self.var_: Any = var if self.with_std else None
            self.scale_: Any = scale_of(mean, var) if self.with_std else None
            self._mean_rest = rest  # what rounding the mean to float64 has lost
            each = _device.host(count)
            whole = bool(((each == np.floor(each)) & (each <= 2.0**53)).all())  # beyond, weights that no int64 may hold
            self.n_samples_seen_: Any = count.astype(np.int64) if whole else count.copy()
            if each.size and (each == each.flat[0]).all():
                self.n_samples_seen_ = int(each.flat[0]) if whole else float(each.flat[0])
        return self

    def _numbers(self) -> tuple[Any, Any, Any]:
        """`mean_` and `scale_`, which somebody may have assigned, None if not asked for; and an array of channels."""
        mean = _sklearn_arguments.attribute("mean_", self.mean_, "with_mean") if self.with_mean else None
        scale = _sklearn_arguments.attribute("scale_", self.scale_, "with_std") if self.with_std else None
        given, seen = [array for array in (mean, scale) if array is not None], getattr(self, "_stats", None)
        if seen is None and not given:
            raise NotFittedError("nothing says how many channels there are; call fit()")
        if seen is None:
            channels = max(given, key=np.size)
        else:  # or those of them that somebody has kept
            kept, shape = {array.shape for array in given}, seen.m2.shape
            others = len(kept) == 1 and shape not in kept and given[0].ndim == len(shape)
            channels = given[0] if others else seen.m2
        mean = _sklearn_arguments.for_all("mean_", mean, channels)
        return mean, _sklearn_arguments.for_all("scale_", scale, channels), channels

    def _names_checked(self, X: Any) -> None:
        """A DataFrame has the columns of `fit`; scikit-learn's errors and warnings."""
        validate_data(self, X, reset=False, skip_check_array=True, ensure_2d=False)

    def _mapped(self, X: Any, copy: bool | None, channels: Any, before: Any, factor: Any, after: Any) -> Any:
        """(X - before)*factor + after; None is 0 or 1."""
        given, X = X, _sklearn_arguments.values(X, self)
        axes = _arguments.channels(X.shape, self.axis, "X")
        _sklearn_arguments.channels_as(channels, X, axes)
        if copy is None:
            copy = self.copy
        _sklearn_arguments.flag("copy", copy)
        own = getattr(given, "dtype", None)  # of another library it says nothing of who has the memory
        converted = isinstance(own, np.dtype) and own != X.dtype  # so that nobody else has X
        in_place = (converted or not copy) and getattr(X.flags, "writeable", True)
        if in_place and _outputs.overlaps_itself(X):
            raise ValueError("X has values that may share memory, which copy=False would write over; pass copy=True")
        if not in_place:
            X, in_place = dense(X)  # a copy, which nobody else has
        return affine(X, axes, before, factor, after, X if in_place else None)


def _statistics(X: NDArray, axes: tuple[int, ...], weights: NDArray | None) -> Moments:
    stats = present_moments(X, axes, weights=weights)
    with _device.current(_device.of(X)):
        infinite = not is_finite(stats) and np.isinf(X).any()
    if infinite:
        raise ValueError(f"X contains infinity or a value too large for {X.dtype}; expected finite values, or NaN")
    return stats
