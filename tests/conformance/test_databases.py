"""SQLite and PostgreSQL, judged by the suite that we ship. The URLs come from the fixtures of all tests."""

import pytest

from elm_agent.testing.conformance import DatabaseSuite


@pytest.mark.usefixtures("fork_server")
class TestDatabases(DatabaseSuite):
    batch = 60
    start_method = "forkserver"

    @pytest.fixture
    def database_url(self, database_url: str) -> str:
        """Its schema is there already."""
        return database_url

    def test_concurrent_openers_make_the_schema_once(self, bare_database_url: str) -> None:
        super().test_concurrent_openers_make_the_schema_once(bare_database_url)
