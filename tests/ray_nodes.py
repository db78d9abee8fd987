"""A real Ray cluster of several nodes on this machine: a head that holds no workers, and nodes that can be lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STORE = 80 * 1024 * 1024  # bytes, the least that Ray takes
_START_SECONDS = 300  # for a node to come up on a machine that has other things to do


class RayNodes:
    """The nodes that are there; ``lose`` is a power cut, ``add`` a new machine."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}

    def add(self, **resources: Any) -> str:
        """A node with two CPUs; its id, as Ray names it."""
        node = self._cluster.add_node(wait=False, **({"num_cpus": 2, "object_store_memory": _STORE} | resources))
        self._cluster.wait_for_nodes(_START_SECONDS)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def lose(self, node_id: str) -> None:
        """Kill the node with all that runs on it, without a word."""
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)

    def keep(self, count: int) -> None:
        """Exactly ``count`` nodes again."""
        for node_id in list(self._nodes)[count:]:
            self.lose(node_id)
        while len(self._nodes) < count:
            self.add()

    @property
    def ids(self) -> set[str]:
        return set(self._nodes)


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster of a head and two nodes, to which this process is connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": _STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, configure_logging=False)
        nodes = RayNodes(cluster)
        nodes.keep(2)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()
