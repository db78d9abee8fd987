"""SQLite and PostgreSQL, judged by the suite that we ship. The URLs come from the fixture of all tests."""

from collections.abc import Iterator

import pytest
from postgres import fresh_database

from elm_agent.testing.conformance import DatabaseSuite


class TestDatabases(DatabaseSuite):
    batch = 60

    @pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
    def database_url(self, request: pytest.FixtureRequest, tmp_path: object) -> Iterator[str]:
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path}/bank.sqlite"
            return
        with fresh_database(request.getfixturevalue("postgres_server")) as url:
            yield url
