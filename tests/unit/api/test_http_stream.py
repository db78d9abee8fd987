"""Answers of a real tiny model over a real connection: text as it is drawn, and rows that end with their client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_calls import serving

from elm_agent import Runtime, open_runtime
from elm_agent.api.http import make_app
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.streaming import TextStream
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation
from elm_agent.testing.doubles import FakeTrainer
from elm_agent.testing.tiny import write_tiny_model

LONG = 6_000  # tokens, minutes of them: a test that waits for the last has failed
DEADLINE = 120.0


class Watched(LocalModel):
    """Rows never end by themselves; ``asked`` are those that were begun."""

    asked: list[TextStream | Future[Generation]]

    def stream(self, request: GenerationRequest) -> TextStream:
        self.asked.append(super().stream(request))
        return self.asked[-1]  # type: ignore[return-value]

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        self.asked.append(super().submit(request))
        return self.asked[-1]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("endless"), context_length=2 * LONG)
    return load_pretrained(str(folder), device="cpu", dtype="float32", offline=True)


@pytest.fixture
def agent(loaded: Any, tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    opened: list[Runtime] = []

    def open_(tokens: int) -> Runtime:
        model = Watched(loaded.model, loaded.tokenizer, loaded.fingerprint, ignore_end=True)
        model.asked = []
        opened.append(
            open_runtime(
                model=model, trainer=FakeTrainer(), home=tmp_path, index="exact", learn=False, max_new_tokens=tokens,
                worker={"mode": "external"},
            )
        )  # fmt: skip
        return opened[-1]

    yield open_
    for runtime in opened:
        runtime.close()
        runtime.model.close()  # type: ignore[attr-defined]


@contextmanager
def served(runtime: Runtime, **options: Any) -> Iterator[httpx.Client]:
    """A client of a server of the runtime."""
    with (
        serving(make_app(runtime, **options)) as url,
        httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False) as client,
    ):
        yield client


def events_of(reply: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in reply.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def given_up(row: TextStream | Future[Generation]) -> bool:
    future = row._reply if isinstance(row, TextStream) else row
    if not future.done():
        return False
    with pytest.raises(CancelledError):
        future.result()
    return True


def test_pieces_come_as_they_are_drawn_and_make_up_the_text(agent: Callable[..., Runtime]) -> None:
    with (
        served(agent(24)) as client,
        client.stream("POST", "/v1/default/ask/stream", json={"question": "What is 2 plus 2?"}) as reply,
    ):
        events = list(events_of(reply))
    names = [name for name, _ in events]
    assert names[0] == "elm.retrieved"
    assert names[-1] == "answer"
    pieces = [detail for name, detail in events if name == "elm.piece"]
    assert len(pieces) > 2
    assert {piece["source"] for piece in pieces} == {"zero_shot"}
    assert names.index("elm.piece") < names.index("elm.candidate")
    assert "".join(piece["text"] for piece in pieces) == events[-1][1]["text"]


def test_a_dropped_stream_frees_its_row(agent: Callable[..., Runtime]) -> None:
    runtime = agent(LONG)
    model = runtime.model
    assert isinstance(model, Watched)
    with served(runtime, most_asked=1) as client:
        for number in range(3):  # with one place to answer in, each needs the place of the last
            eventually(lambda: client.get("/health").status_code == 200)
            with client.stream("POST", "/v1/default/ask/stream", json={"question": "Tell me."}) as reply:
                assert reply.status_code == 200, reply.read()
                events = events_of(reply)
                while next(events)[0] != "elm.piece":
                    pass
            eventually(lambda: all(map(given_up, model.asked)))
            assert len(model.asked) == number + 1
            eventually(lambda: free(client))


def test_a_dropped_question_frees_its_row(agent: Callable[..., Runtime]) -> None:
    runtime = agent(LONG)
    model = runtime.model
    assert isinstance(model, Watched)
    with served(runtime, most_asked=1) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/default/ask", json={"question": "Tell me."}, timeout=httpx.Timeout(60, read=1.0))
        eventually(lambda: bool(model.asked) and all(map(given_up, model.asked)))
        eventually(lambda: free(client))


def test_one_question_too_many_is_told_to_wait(agent: Callable[..., Runtime]) -> None:
    runtime = agent(LONG)
    with (
        served(runtime, most_asked=1) as client,
        client.stream("POST", "/v1/default/ask/stream", json={"question": "Tell me."}) as reply,
    ):
        events = events_of(reply)
        next(events)
        busy = client.post("/v1/default/ask", json={"question": "And me?"})
        assert busy.status_code == 503
        assert busy.json()["error"]["type"] == "Busy"
        assert busy.headers["retry-after"] == "1"
        assert client.get("/v1/default/memories").json() == []  # looking goes on


def free(client: httpx.Client) -> bool:
    """Whether there is a place to answer in: a blank question takes it, and gives it back at once."""
    return client.post("/v1/default/ask", json={"question": " "}).status_code == 422
