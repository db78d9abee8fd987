"""Auditing memories: where each came from, what it did, and how to take one out and put it back.

Run:  python examples/04_audit_and_evict.py     (after 01_solver.py, or it learns one memory first)
"""

from __future__ import annotations

from elm_agent import MemoryState, Settings, open_bank, open_runtime
from elm_agent.integrations.langgraph import build_graph

ACTOR = "auditor@example.org"


def main() -> None:
    settings = Settings()
    namespace = settings.namespace
    with open_runtime(settings) as runtime:
        build_graph(runtime).invoke({"question": "What is 5 times 5?"})
        runtime.runner.wait_idle()

    bank = open_bank(settings)  # an audit needs no model
    try:
        memory = bank.memories(namespace)[0]
        episode = bank.episode(namespace, memory.id)
        print(f"{memory.id} came from {memory.question!r}, trained on {memory.model.name}")
        print(f"  votes over the steps: {[round(step.vote_share, 2) for step in episode.curve]}")
        print(f"  majority answer {episode.majority_answer!r}; used {memory.uses} times")
        print(f"  fixed {memory.fixed}, broke {memory.broken}")

        bank.transition(namespace, memory.id, MemoryState.RETIRED, actor=ACTOR, reason="audit example")
        print(f"  evicted: now {bank.memory(namespace, memory.id).state}, never retrieved")
        bank.transition(namespace, memory.id, MemoryState.ACTIVE, actor=ACTOR, reason="second thoughts")
        print(f"  restored: now {bank.memory(namespace, memory.id).state}")
        for event in bank.events(namespace, memory.id):
            print(f"  {event.created_at:%Y-%m-%d %H:%M:%S}  {event.kind:<12} by {event.actor}")
    finally:
        bank.close()


if __name__ == "__main__":
    main()
