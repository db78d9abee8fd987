"""For whoever writes a part of his own: suites that judge it, twins in memory and doubles to try it with.

    from elm_agent.testing import KeyIndexSuite

    class TestMine(KeyIndexSuite):
        @pytest.fixture
        def index(self, tmp_path):
            made = MyIndex(tmp_path)
            yield made
            made.close()

The suites need pytest, which the library itself does not: ``pip install pytest``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_agent.testing.conformance_jobs import ExecutorCapability, JobExecutorSuite
    from elm_agent.testing.conformance_judges import TaskSuite, VerifierCapability, VerifierSuite
    from elm_agent.testing.database_suite import DatabaseCapability, DatabaseSuite
    from elm_agent.testing.index_suite import KeyIndexSuite
    from elm_agent.testing.memory_stores import MemoryIndex, MemoryTensors
    from elm_agent.testing.tensor_suite import TensorStoreSuite

_HOMES = {
    "DatabaseCapability": "database_suite",
    "DatabaseSuite": "database_suite",
    "ExecutorCapability": "conformance_jobs",
    "JobExecutorSuite": "conformance_jobs",
    "KeyIndexSuite": "index_suite",
    "MemoryIndex": "memory_stores",
    "MemoryTensors": "memory_stores",
    "TaskSuite": "conformance_judges",
    "TensorStoreSuite": "tensor_suite",
    "VerifierCapability": "conformance_judges",
    "VerifierSuite": "conformance_judges",
}

__all__ = [
    "DatabaseCapability",
    "DatabaseSuite",
    "ExecutorCapability",
    "JobExecutorSuite",
    "KeyIndexSuite",
    "MemoryIndex",
    "MemoryTensors",
    "TaskSuite",
    "TensorStoreSuite",
    "VerifierCapability",
    "VerifierSuite",
]


def __getattr__(name: str) -> Any:
    """Load on first use: a double of a model should not cost pytest, nor a suite of indexes torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_agent.testing' has no attribute {name!r}")
    try:
        return getattr(import_module(f"elm_agent.testing.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise ImportError(f"{name} is run by pytest, which is not installed: `pip install pytest`") from None
