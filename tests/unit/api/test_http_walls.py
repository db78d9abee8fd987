"""Tokens and namespaces are walls: who has no token learns nothing, who has one sees his own namespaces alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_calls import ACCESS, ADMIN, ALICE, BOB, bearer, failure
from fastapi import WebSocketDisconnect
from fastapi.testclient import TestClient

from elm_agent import Runtime, open_runtime
from elm_agent.api.access import Holder, read_tokens
from elm_agent.api.guard import LOOPBACK
from elm_agent.api.http import make_app
from elm_agent.api.serving import is_loopback, listen, make_door, need
from elm_agent.errors import NotFound, SettingsError
from elm_agent.testing.doubles import FakeModel, FakeTrainer

QUESTION = {"question": "What is 7 times 8?"}


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One agent for all who may not ask it."""
    home = tmp_path_factory.mktemp("shut")
    with open_runtime(model=FakeModel(), trainer=FakeTrainer(), home=home, index="exact") as runtime:
        yield TestClient(make_app(runtime, access=ACCESS))


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE} {BOB}",
        f"Basic {ALICE}",
        ALICE,
        "Bearer \xe4\xf6\xfc",
    ],
)
@pytest.mark.parametrize("path", ["/v1/namespaces", "/v1/alice/memories", "/openapi.json", "/nothing"])
def test_without_a_known_token_nothing_is_told(shut: TestClient, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    reply = shut.get(path, headers=headers)  # type: ignore[arg-type]
    assert failure(reply, 401)["type"] == "Unauthorized"
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_bad_body_without_a_token_is_401_too(guarded: TestClient) -> None:
    failure(guarded.post("/v1/alice/ask", content=b"{", headers={"content-type": "application/json"}), 401)


def test_two_tokens_are_none(guarded: TestClient) -> None:
    headers = [("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {ADMIN}")]
    failure(guarded.get("/v1/namespaces", headers=headers), 401)


def test_health_needs_no_token(guarded: TestClient) -> None:
    assert guarded.get("/health").json() == {"status": "ok"}


def test_a_known_token_may_ask_in_its_namespaces(guarded: TestClient) -> None:
    assert guarded.post("/v1/alice/ask", json=QUESTION, headers=bearer(ALICE)).status_code == 200
    assert guarded.get("/v1/default/memories", headers={"authorization": f"bEaReR {ALICE}"}).status_code == 200


def test_another_namespace_is_as_if_it_were_not_there(guarded: TestClient) -> None:
    answer = guarded.post("/v1/alice/ask", json=QUESTION, headers=bearer(ALICE)).json()
    memory_id = guarded.get("/v1/alice/memories", headers=bearer(ALICE)).json()[0]["id"]
    calls = [
        ("POST", "ask", QUESTION),
        ("POST", "ask/stream", QUESTION),
        ("POST", "recall", QUESTION),
        ("GET", "memories", None),
        ("GET", f"memories/{memory_id}", None),
        ("GET", f"memories/{memory_id}/why", None),
        ("GET", "jobs", None),
        ("GET", f"jobs/{answer['job_id']}", None),
        ("POST", f"jobs/{answer['job_id']}/cancel", None),
        ("POST", f"jobs/{answer['job_id']}/retry", None),
    ]
    for method, path, body in calls:
        theirs = guarded.request(method, f"/v1/alice/{path}", json=body, headers=bearer(BOB))
        nobodys = guarded.request(method, f"/v1/carol/{path}", json=body, headers=bearer(BOB))
        told, other = failure(theirs, 404), failure(nobodys, 404)
        assert told["message"].replace("alice", "carol") == other["message"]
        assert told["type"] == "NotFound"
    assert guarded.get("/v1/namespaces", headers=bearer(BOB)).json() == []  # its own has no question yet
    names = [shown["name"] for shown in guarded.get("/v1/namespaces", headers=bearer(ALICE)).json()]
    assert names == ["alice", "default"]
    assert len(guarded.get("/v1/namespaces", headers=bearer(ADMIN)).json()) == 2


def test_a_page_whose_name_points_here_is_kept_out(runtime: Runtime) -> None:
    app = make_app(runtime, hosts=LOOPBACK)
    for name in ("localhost", "localhost:8011", "127.0.0.1:8011", "[::1]:8011", "[::1]", "LOCALHOST"):
        assert TestClient(app).get("/health", headers={"host": name}).status_code == 200
    for name in ("evil.example", "evil.example:8011", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        assert failure(TestClient(app).get("/v1/namespaces", headers={"host": name}), 421)["type"] == "WrongHost"


def test_a_socket_of_the_web_is_closed(guarded: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, guarded.websocket_connect("/v1/alice/ask"):
        pass  # pragma: no cover
    assert closed.value.code == 1008


# --- the file of tokens -------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_file_of_tokens_says_who_may_see_what(tmp_path: Path) -> None:
    access = read_tokens(write(tmp_path, f"# who may ask\n{ADMIN}\n\n{ALICE}  alice default # hers\n{BOB}\tbob\n"))
    assert not access.open
    assert access.holder(ADMIN) == Holder()
    assert access.holder(ALICE) == Holder(("alice", "default"))
    assert access.holder(BOB) == Holder(("bob",))
    assert access.holder(None) is None
    assert access.holder("") is None
    with pytest.raises(NotFound, match="'alice' is not in this bank"):
        Holder(("bob",)).check("alice")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no token"),
        ("# nothing\n\n", "has no token"),
        ("short alice\n", "line 1 .* begins with no token"),
        (f"{ALICE}\nnot a token but words\n", "line 2"),
        ("ä" * 30, "begins with no token"),
        (f"{ALICE}\n{ALICE} alice\n", "has a token again"),
        (f"{ALICE} ../alice\n", "namespace '../alice' is not usable"),
        (b"\xff\xfe\x00", "is not text"),
    ],
)
def test_a_bad_file_of_tokens_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        read_tokens(write(tmp_path, text))
    assert ALICE not in str(caught.value)


def test_a_file_that_others_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"read by others \(mode 0644\): `chmod 600"):
        read_tokens(write(tmp_path, ALICE, 0o644))
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_tokens(tmp_path / "none")


# --- the door -----------------------------------------------------------------------------------------------


def test_only_loopback_is_open(tmp_path: Path) -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "example.org", "")))
    door = make_door("127.0.0.1", None)
    assert door.access.open
    assert door.hosts == LOOPBACK
    with pytest.raises(SettingsError, match="--token-file"):
        make_door("0.0.0.0", None)
    door = make_door("0.0.0.0", write(tmp_path, ALICE))
    assert not door.access.open
    assert door.hosts is None
    assert make_door("127.0.0.1", write(tmp_path, ALICE)).access.holder("x") is None


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    del tmp_path
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(SettingsError, match="nothing can listen on no"):
        listen("no.such.host.invalid", 0)


def test_a_missing_package_is_said_with_its_command() -> None:
    need("api", "fastapi")
    with pytest.raises(SettingsError, match=r"needs no_such_package: run `pip install 'elm-agent\[api\]'`"):
        need("api", "fastapi", "no_such_package")


def test_the_access_of_the_tests_is_closed() -> None:
    assert not ACCESS.open
