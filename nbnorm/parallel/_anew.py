"""A Dask array computed a second time, so that no chunk has to wait in memory for what comes of all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import dask.array as da
from dask import delayed
from dask.base import tokenize
from dask.core import flatten, toposort
from dask.graph_manipulation import checkpoint
from dask.highlevelgraph import HighLevelGraph

from nbnorm import _needed

# A module of Dask's own, which a newer one may move: the advice has versions that are known to have it.
with _needed.package("nbnorm on Dask arrays", 'pip install "dask[array]>=2025.1,<2026.9"'):
    from dask._task_spec import DataNode, Task, TaskRef, convert_legacy_graph

KNOWN = "nbnorm-known"  # begins the keys of what is small, a few numbers a channel, and comes of all chunks


def anew(x: da.Array, after: Iterable[Any]) -> da.Array:
    """x by tasks of its own, the first of which wait until all lazy arrays of `after` are known.

    As `dask.graph_manipulation.bind` should do, which in Dask 2026.8 leaves the tasks of slices, rechunked and other
    arrays with their old inputs, so that these are kept. What waits already, and statistics, are not computed again.

    `after` has to be all that is needed beside x: a task that can read and then has to wait for anything else lets the
    next one read first, and so all of them.
    """
    parts = [checkpoint(array) for array in after if isinstance(array, da.Array)]
    token = tokenize(*(part.key for part in parts))
    known = delayed(_nothing)(*parts, dask_key_name=f"{KNOWN}-{token}")  # checkpoint of several has a key of chance
    graph_of_x = dict(x.__dask_graph__())
    before = convert_legacy_graph(graph_of_x)
    # What is small; and what is there, be it an array to read from (a DataNode): only reading it is a task.
    future = getattr(sys.modules.get("distributed"), "Future", ())  # whoever has one in a graph has imported it
    same = {key for key, value in graph_of_x.items() if isinstance(value, future) or _is_known(key)}
    same |= {key for key, node in before.items() if isinstance(node, DataNode)}
    waiting = _waiting(before, known.key, same)
    outputs = set(flatten(x.__dask_keys__()))
    if outputs & same or outputs <= waiting:
        return x
    names = {key: _renamed(key, token) for key in before if key in outputs or key not in same | waiting}
    graph = {}
    for key, name in names.items():
        new = before[key].substitute(names, key=name)
        if isinstance(new, Task) and new.dependencies <= same - waiting:
            new = Task(name, _second, TaskRef(known.key), new)
        graph[name] = new
    name = _renamed(x.name, token)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[known, x])
    # Else Dask would fuse a layer of which some tasks are needed here into what comes of it, where they have no keys.
    outside = {key for node in graph.values() for key in node.dependencies} - graph.keys()
    layers.dependencies[name].update(
        {key[0] if isinstance(key, tuple) else key for key in outside} & layers.layers.keys()
    )
    return da.Array(layers, name, x.chunks, meta=x._meta)


def _waiting(graph: Any, known: Any, same: set[Any]) -> set[Any]:
    """The tasks that cannot begin before `known`, nor anything they need; of the small ones those that come of it."""
    dependencies = {key: node.dependencies & graph.keys() for key, node in graph.items()}  # others are on a cluster
    behind, waiting = {known}, {known}
    for key in toposort(graph, dependencies=dependencies):
        needs = dependencies[key]
        if needs & behind:
            behind.add(key)
        if key in behind if key in same else needs & waiting and needs <= same | waiting:
            waiting.add(key)
    return waiting


def _is_known(key: Any) -> bool:
    """Whether it is small, or says that such a thing is known."""
    return str(key[0] if isinstance(key, tuple) else key).startswith((KNOWN, "checkpoint"))


def _renamed(key: Any, token: str) -> Any:
    return (_renamed(key[0], token), *key[1:]) if isinstance(key, tuple) else f"{key}-{token}"


def _nothing(*known: None) -> None:
    return None


def _second(known: None, value: Any) -> Any:
    return value
