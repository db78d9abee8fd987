"""The connection to a Ray cluster and what the cluster has. Knows nothing of workers or jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray

from elm_agent.errors import JobError

_OBJECT_STORE = 80 * 1024 * 1024  # bytes, the least that Ray takes: memories go through the tensor store


def connect(address: str | None, *, dashboard: bool) -> bool:
    """Connect this process to Ray; False when it was connected already, by somebody who also ends that.

    ``address``: None is RAY_ADDRESS, or without it a new cluster on this machine.

    Raises:
        JobError: there is no cluster at ``address``, or one of another version of Ray or Python.
    """
    if ray.is_initialized():
        return False
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker without a GPU share sees no GPU
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = (
        {"include_dashboard": dashboard, "object_store_memory": _OBJECT_STORE} if where == "local" else {}
    )
    try:
        ray.init(address=where, configure_logging=False, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise JobError(
            f"no Ray cluster could be used at {where!r}: {_one_line(error)}; `ray start --head` starts one, "
            "ray.address names it"
        ) from error
    return True


def disconnect() -> None:
    ray.shutdown()


def nodes() -> dict[str, dict[str, float]]:
    """Node id -> its resources in all, of every node that lives."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def fitting(wanted: Mapping[str, float]) -> list[str]:
    """Nodes that could hold ``wanted`` if nothing else ran on them."""
    return [node for node, has in nodes().items() if all(has.get(name, 0.0) >= need for name, need in wanted.items())]


def describe(wanted: Mapping[str, float]) -> str:
    """One line: what a worker wants, what is free, what each node has."""
    names = ("CPU", "GPU")
    has = "; ".join(f"{node[:8]}: {_amounts(total, names)}" for node, total in nodes().items()) or "none"
    free: dict[str, Any] = ray.available_resources()
    return f"each wants {_amounts(wanted, names)}; free in the cluster: {_amounts(free, names)}; its nodes: {has}"


def _amounts(resources: Mapping[str, float], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in names)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
