"""How soon a streamed answer begins: ``python -m elm_agent.bench.first_byte`` prints a Markdown table.

Three ways in turn, the same question each time: the engine alone, the graph where nothing was learnt, the graph where
a memory is near. What counts is the first piece of the plain answer, which is there in all three. The last line is
what a memory adds to it beyond retrieval: the promise is none.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.settings import Settings

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime

LEARNT = "What is 7 times 8?"
NAMESPACES = {"nothing learnt": "empty", "a memory": "learnt"}


@dataclass(frozen=True, slots=True)
class Taken:
    """Milliseconds from the question to its retrieval (0 without one) and to the first piece of its answer."""

    retrieved: float
    first: float


def alone(runtime: Runtime, question: str, tokens: int) -> Taken:
    """The engine itself, as without this library around it."""
    from elm_agent.models.engine import LocalModel
    from elm_agent.protocols import GenerationRequest

    model = runtime.model
    assert isinstance(model, LocalModel)
    started = time.perf_counter()
    prompt_ids = model.encode(runtime.task.messages(question))
    with model.stream(GenerationRequest(prompt_ids=prompt_ids, max_new_tokens=tokens)) as stream:
        next(stream)
        first = time.perf_counter()
        list(stream)
    return Taken(0.0, (first - started) * 1000)


def through(graph: Any, question: str, namespace: str) -> Taken:
    """The graph's stream of pieces."""
    context = {"namespace": namespace, "learn": False, "pieces": True, "min_similarity": -1.0}
    started = time.perf_counter()
    retrieved = first = None
    for event in graph.stream({"question": question}, context=context, stream_mode="custom"):
        if event["event"] == "elm.retrieved":
            retrieved = time.perf_counter()
            assert (event["memory_id"] is None) == (namespace == "empty"), event
        elif event["event"] == "elm.piece" and event["source"] == "zero_shot" and first is None:
            first = time.perf_counter()
    assert retrieved is not None
    assert first is not None
    return Taken((retrieved - started) * 1000, (first - started) * 1000)


def measure(runtime: Runtime, *, repeats: int, tokens: int) -> dict[str, list[Taken]]:
    """By the way of asking; the first turn does not count."""
    from elm_agent.integrations.langgraph import build_graph

    graph = build_graph(runtime)
    taken: dict[str, list[Taken]] = {"the engine alone": [], **{way: [] for way in NAMESPACES}}
    for turn in range(repeats + 1):
        question = f"What is {turn % 8 + 2} times 9?"
        now = {"the engine alone": alone(runtime, question, tokens)}
        now |= {way: through(graph, question, name) for way, name in NAMESPACES.items()}
        for way, one in now.items():
            if turn:
                taken[way].append(one)
    return taken


def rows(taken: dict[str, list[Taken]]) -> list[tuple[str, str, str]]:
    """Of the table: medians in milliseconds, the longest in brackets."""
    shown = [
        (way, _ms([one.retrieved for one in many]) if way in NAMESPACES else "-", _ms([one.first for one in many]))
        for way, many in taken.items()
    ]
    pairs = zip(taken["the engine alone"], taken["a memory"], strict=True)
    later = [memory.first - memory.retrieved - plain.first for plain, memory in pairs]
    return [*shown, ("a memory, beyond retrieval and the engine alone", "-", _ms(later))]


def _ms(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ({max(times):.0f})"


def _learn(runtime: Runtime) -> None:
    """One memory, of a training as short as can be."""
    from elm_agent.integrations.langgraph import build_graph

    build_graph(runtime).invoke({"question": LEARNT}, context={"namespace": "learnt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=8, help="of each answer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        chosen: dict[str, Any] = {
            "learning": {"steps": 1, "rollouts": 2, "max_new_tokens": 16, "min_vote_share": 0.0}
        }
        settings = Settings(
            home=Path(home), model=given.model, max_new_tokens=given.tokens, worker={"mode": "inline"}, **chosen
        )
        from elm_agent.runtime import open_runtime

        with open_runtime(settings) as runtime:
            _learn(runtime)
            taken = measure(runtime, repeats=given.repeats, tokens=given.tokens)
    print(f"{given.model}, {platform.machine()}, {os.cpu_count()} cores, medians of {given.repeats} (longest), ms\n")
    print("| asked | retrieved | first piece |\n| --- | --- | --- |")
    for row in rows(taken):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
