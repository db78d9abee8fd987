"""Questions to the API made from its own description: whatever they are, the server does not fail.

ELM_TEST_API_CASES: how many for each operation, some by default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from api_calls import serving
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from elm_agent import open_runtime
from elm_agent.api.http import make_app
from elm_agent.testing.doubles import FakeModel, FakeTrainer

FEW = 6
CASES = int(os.environ.get("ELM_TEST_API_CASES", FEW))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("fuzzed")
    with (
        open_runtime(
            model=FakeModel(), trainer=FakeTrainer(), home=home, index="exact", worker={"mode": "external"}
        ) as runtime,
        serving(make_app(runtime)) as url,
    ):
        described = httpx.get(f"{url}/openapi.json", trust_env=False).json()
        schema = schemathesis.openapi.from_dict(described)
        schema.config.update(base_url=url)
        yield schema


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        yield made


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
def test_no_question_is_too_strange(described: Any, session: requests.Session, mode: GenerationMode) -> None:
    """Both what the description allows and what it does not; each call has its own questions."""
    asked = set()
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and "{" not in operation.path:
            continue  # takes nothing that could be wrong
        statuses: set[int] = set()

        @settings(
            max_examples=CASES,
            deadline=None,
            database=None,
            derandomize=CASES <= FEW,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any, statuses: set[int] = statuses) -> None:
            statuses.add(case.call_and_validate(session=session, checks=CHECKS).status_code)

        ask()
        asked.add((operation.method.upper(), operation.path))
        assert statuses, operation.path
    assert len(asked) >= 11
