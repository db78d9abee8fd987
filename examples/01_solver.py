"""A solver agent that learns while it works: answer a list of problems, watch which memory helped.

Run:  python examples/01_solver.py
"""

from __future__ import annotations

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langgraph import build_graph

PROBLEMS = ["What is 7 times 8?", "What is 6 plus 9?", "What is 9 times 4?"]


def main() -> None:
    with open_runtime(Settings()) as runtime:
        solver = build_graph(runtime)
        for problem in PROBLEMS:
            out = solver.invoke({"question": problem})
            helper = f" with {out['memory_id']} ({out['similarity']:.2f})" if out["memory_id"] else ""
            print(f"{problem}  ->  {out['answer']}   [{out['route']}{helper}]", flush=True)
            print("   learning from it ...", flush=True)
            runtime.runner.wait_idle()  # a real agent goes on; here we want to see the next answer use it
        for memory in runtime.bank.memories(runtime.settings.namespace):
            print(f"{memory.id}  {memory.state}  vote share {memory.final_vote_share:.0%}  from {memory.question!r}")


if __name__ == "__main__":
    main()
