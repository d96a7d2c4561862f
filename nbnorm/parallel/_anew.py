"""A Dask array computed a second time, so that no chunk has to wait in memory for what comes of all of them."""

from __future__ import annotations

from typing import Any

import dask.array as da
from dask._task_spec import DataNode, Task, TaskRef, convert_legacy_graph
from dask.base import tokenize
from dask.graph_manipulation import checkpoint
from dask.highlevelgraph import HighLevelGraph
from distributed import Future


def anew(x: da.Array, after: list[da.Array]) -> da.Array:
    """x by tasks of its own, the first of which wait until `after` is known.

    As `dask.graph_manipulation.bind` should do, which in Dask 2026.8 leaves the tasks of slices, rechunked and other
    arrays with their old inputs, so that these are kept.
    """
    known = checkpoint(*after)
    token = tokenize(known.key)
    before = dict(x.__dask_graph__())
    graph = {key: value for key, value in before.items() if isinstance(value, Future)}  # computed and kept already
    if any(key[0] == x.name for key in graph):
        return x
    names = {key: _renamed(key, token) for key in before if key not in graph}
    for key, node in convert_legacy_graph(before).items():
        if key in graph:
            continue
        new = node.substitute(names, key=names[key])
        if not new.dependencies and not isinstance(new, DataNode):
            new = Task(names[key], _second, TaskRef(known.key), new)
        graph[names[key]] = new
    name = _renamed(x.name, token)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[known])
    return da.Array(layers, name, x.chunks, meta=x._meta)


def _renamed(key: Any, token: str) -> Any:
    return (_renamed(key[0], token), *key[1:]) if isinstance(key, tuple) else f"{key}-{token}"


def _second(known: None, value: Any) -> Any:
    return value
