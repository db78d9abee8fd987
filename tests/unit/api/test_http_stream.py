"""Answers of a real tiny model over a real connection: text as it is drawn, and rows that end with their client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from api_calls import DEADLINE, LONG, Watched, eventually, given_up, serving

from elm_agent import Runtime
from elm_agent.api.http import make_app


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
