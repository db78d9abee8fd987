"""What every store must do, as pytest classes: subclass one, give its fixture, and your back end is judged.

    class TestMine(KeyIndexSuite):
        @pytest.fixture
        def index(self, tmp_path):
            made = MyIndex(tmp_path)
            yield made
            made.close()

The promises are those of ``elm_agent.protocols``. Needs pytest, which the library itself does not.
"""

from __future__ import annotations

from elm_agent.testing.conformance_jobs import ExecutorCapability, JobExecutorSuite
from elm_agent.testing.conformance_judges import TaskSuite, VerifierCapability, VerifierSuite
from elm_agent.testing.database_suite import DatabaseCapability, DatabaseSuite
from elm_agent.testing.index_processes import entries, unit_vectors
from elm_agent.testing.index_suite import KeyIndexSuite
from elm_agent.testing.tensor_suite import TensorStoreSuite

__all__ = [
    "DatabaseCapability",
    "DatabaseSuite",
    "ExecutorCapability",
    "JobExecutorSuite",
    "KeyIndexSuite",
    "TaskSuite",
    "TensorStoreSuite",
    "VerifierCapability",
    "VerifierSuite",
    "entries",
    "unit_vectors",
]
