"""Questions to the API made from its own description: whatever they are, the server does not fail.

ELM_TEST_API_CASES: how many for each operation, some by default. Hypothesis alone makes them from the names in the
description; schemathesis, where it is installed (`pip install 'elm-agent[fuzz]'`), from all that it says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from api_calls import serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from elm_agent import open_runtime
from elm_agent.api.http import make_app
from elm_agent.testing.doubles import FakeModel, FakeTrainer

FEW = 6
CASES = int(os.environ.get("ELM_TEST_API_CASES", FEW))
QUIETLY = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= FEW,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

WORDS = st.sampled_from(["default", "mem_1", "active", "right", "hi", "-uses", "1", "-1", "1e999", "null", ""])
TEXTS = st.text(max_size=40) | WORDS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("fuzzed")
    with (
        open_runtime(
            model=FakeModel(), trainer=FakeTrainer(), home=home, index="exact", worker={"mode": "external"}
        ) as runtime,
        serving(make_app(runtime)) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def described(served: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served}/openapi.json", trust_env=False).json()
    return found


def test_no_names_are_too_strange(served: str, described: dict[str, Any]) -> None:
    calls = [
        (method, path, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    assert len(calls) >= 13
    with httpx.Client(base_url=served, trust_env=False, timeout=120) as client:
        for method, path, operation in calls:
            assert statuses_of(client, method, path, operation, described), path


def statuses_of(client: httpx.Client, method: str, path: str, operation: Any, described: Any) -> set[int]:
    """The statuses of all replies to one call; each reply is checked."""
    names = re.findall(r"{(\w+)}", path)
    queries = [item["name"] for item in operation.get("parameters", []) if item["in"] == "query"]
    fields = body_fields(operation, described)
    statuses: set[int] = set()

    @QUIETLY
    @given(
        places=st.fixed_dictionaries({name: st.just("default") | TEXTS for name in names}),
        query=st.dictionaries(st.sampled_from(queries), TEXTS) if queries else st.just({}),
        body=st.dictionaries(st.sampled_from(fields) | TEXTS, TEXTS | VALUES, max_size=4) if fields else VALUES,
    )
    def ask(places: dict[str, str], query: dict[str, str], body: Any) -> None:
        where = path
        for name, value in places.items():
            where = where.replace(f"{{{name}}}", quote(value, safe=""))
        reply = client.request(method, where, params=query, json=body if method == "post" else None)
        assert reply.status_code < 500, (where, query, body, reply.text)
        if reply.status_code >= 400:
            assert sorted(reply.json()["error"]) == ["message", "type"]
        statuses.add(reply.status_code)

    ask()
    return statuses


def body_fields(operation: Any, described: Any) -> list[str]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"]["$ref"].rpartition("/")[2]
        return list(described["components"]["schemas"][name]["properties"])
    return []


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_question_is_too_strange(served: str, described: dict[str, Any], mode: str) -> None:
    """Both what the description allows and what it does not."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install 'elm-agent[fuzz]'")
    schema = schemathesis.openapi.from_dict(described)
    operations = [found.ok() for found in schema.get_all_operations()]
    if mode == "negative":  # those without a parameter take nothing that could be wrong
        operations = [operation for operation in operations if "{" in operation.path]
    assert len(operations) >= 11
    for operation in operations:
        assert replies(operation, served, schemathesis.GenerationMode(mode)), operation.path


def replies(operation: Any, url: str, mode: Any) -> set[int]:
    """The statuses of all replies to one call; each reply is checked."""
    import requests
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    every = [
        not_a_server_error,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.status_code_conformance,
    ]
    statuses: set[int] = set()
    with requests.Session() as session:
        session.trust_env = False

        @QUIETLY
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            statuses.add(case.call_and_validate(base_url=url, session=session, checks=every).status_code)

        ask()
    return statuses
