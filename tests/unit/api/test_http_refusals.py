"""Bad input to the HTTP API: refused in one sentence, and nothing changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from api_calls import failure
from fastapi.testclient import TestClient

from elm_agent import open_runtime
from elm_agent.api.http import make_app
from elm_agent.testing.doubles import FakeModel, FakeTrainer

FIRST = {"question": "What is 7 times 8?"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One agent for all of them: none of them may change it."""
    home = tmp_path_factory.mktemp("refusing")
    with open_runtime(
        model=FakeModel(), trainer=FakeTrainer(), home=home, index="exact", worker={"mode": "inline"}
    ) as runtime:
        yield TestClient(make_app(runtime), raise_server_exceptions=False)
        assert runtime.bank.memories("default") == []
        assert runtime.bank.jobs.list() == []
        assert [info.name for info in runtime.bank.namespaces()] == ["default"]


BODIES = {
    "half": b'{"question": "hi"',
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no question": b"{}",
    "a number": b'{"question": 7}',
    "blank": b'{"question": " \\n "}',
    "half a character": b'{"question": "\\ud800"}',
    "NUL": b'{"question": "a\\u0000b"}',
    "not UTF-8": b'{"question": "\xff\xfe"}',
    "binary": bytes(range(256)) * 20,
    "many digits": b'{"question": ' + b"9" * 9_000 + b"}",
    "NaN": b'{"question": "hi", "min_similarity": NaN}',
    "infinity": b'{"question": "hi", "min_similarity": -Infinity}',
    "too far": b'{"question": "hi", "min_similarity": 2}',
    "unknown": b'{"question": "hi", "answer": "42"}',
    "a subject of blanks": b'{"question": "hi", "subject": "  "}',
    "too long": b'{"question": "' + b"a" * 20_001 + b'"}',
    "longer than the model": b'{"question": "' + b"a" * 5_000 + b'"}',
}


@pytest.mark.parametrize("path", ["ask", "ask/stream"])
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_a_bad_body_is_refused_in_one_sentence(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(f"/v1/default/{path}", content=body, headers={"content-type": "application/json"})
    if path.endswith("stream") and reply.status_code == 200:  # found out when the first event was told already
        assert "event: error" in reply.text
        assert "InputError" in reply.text
    else:
        error = failure(reply, 400 if reply.status_code == 400 else 422)
        assert error["type"] == "InputError"
        assert len(error["message"]) < 600


def test_a_huge_body_is_not_read(client: TestClient) -> None:
    assert failure(client.post("/v1/default/ask", content=b"x" * (2 << 20)), 413)["type"] == "TooLarge"

    def chunks() -> Any:  # of a body that does not say how long it is
        for _ in range(40):
            yield b" " * (1 << 16)

    headers = {"content-type": "application/json"}
    assert client.post("/v1/default/ask", content=chunks(), headers=headers).status_code == 413


def test_a_form_of_another_site_is_refused(client: TestClient) -> None:
    """A page elsewhere can send this without being asked; JSON it cannot."""
    body, headers = json.dumps(FIRST).encode(), {"content-type": "text/plain"}
    failure(client.post("/v1/default/ask", content=body, headers=headers), 422)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("default/memories?limit=0", 422),
        ("default/memories?limit=501", 422),
        ("default/memories?offset=-1", 422),
        ("default/memories?offset=99999999999999999999", 422),
        ("default/memories?order=question", 422),
        ("default/memories?state=happy", 422),
        ("default/memories/mem_none", 404),
        ("default/memories/%00", 422),
        ("default/memories/mem_none/why", 404),
        ("default/memories/..%2f..%2fetc", 404),
        ("default/memories/" + "m" * 101, 422),
        ("default/jobs?state=happy", 422),
        ("default/jobs/job_none", 404),
        ("a%20b/memories", 422),
        ("%ff/memories", 422),
        ("-/memories", 422),
        ("nowhere/memories", 404),
        ("nowhere", 404),
    ],
)
def test_a_bad_address_is_refused_in_one_sentence(client: TestClient, path: str, status: int) -> None:
    failure(client.get(f"/v1/{path}"), status)


def test_a_wrong_method_is_refused(client: TestClient) -> None:
    assert failure(client.delete("/v1/default/ask"), 405)["type"] == "MethodNotAllowed"
