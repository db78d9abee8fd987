"""Swapping back ends and parts: another database, another index, a verifier of your own.

Run:  python examples/03_swap_storage.py
With a server:  ELM_DATABASE_URL=postgresql+psycopg://user:secret@localhost/elm python examples/03_swap_storage.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langgraph import build_graph
from elm_agent.verification import CallableVerifier


def main() -> None:
    # 1. Everything is a setting; ELM_... variables and TOML files say the same.
    home = Path(tempfile.mkdtemp())
    settings = Settings(home=home, index="chroma", tensors=str(home / "memories"), retrieval={"key": "kv"})

    # 2. Parts can be objects: here the shorter of two different answers wins.
    shorter = CallableVerifier(lambda _question, candidate: -len(candidate.text), name="shorter")

    with open_runtime(settings, verifier=shorter) as runtime:
        graph = build_graph(runtime)
        for question in ("What is 2 times 9?", "What is 2 times 8?"):
            out = graph.invoke({"question": question})
            print(f"{question}  ->  {out['answer']}  [{out['route']}]", flush=True)
            runtime.runner.wait_idle()
        print(f"database  {settings.resolved_database_url}")
        print(f"tensors   {sorted(runtime.bank.tensors.digests(settings.namespace))}")


if __name__ == "__main__":
    main()
