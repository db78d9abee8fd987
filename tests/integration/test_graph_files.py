"""The files that langgraph.json names, loaded as a LangGraph server loads them: by path, in a new process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elm_agent.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
GRAPHS = json.loads((ROOT / "langgraph.json").read_text("utf-8"))["graphs"]

BY_PATH = """
import importlib.util, json, sys
from langgraph.pregel import Pregel

graphs = {}
for name, place in json.loads(sys.argv[1]).items():
    path, variable = place.split(":")
    module_name = path.replace("/", "__").replace(".py", "").lstrip(".")
    spec = importlib.util.spec_from_file_location(module_name, path)
    sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    graphs[name] = graph = getattr(module, variable)
    assert isinstance(graph, Pregel) and graph.checkpointer is None and graph.store is None
    for found in vars(module).values():  # a class of its own could not be unpickled under that name
        assert not isinstance(found, type) or found.__module__ != module_name or hasattr(found, "__total__"), found
assert "torch" not in sys.modules, "loading the files must be quick"
"""

ANSWERS = """
import asyncio
lesson = {"learner": "ada", "question": "What is 7 times 8?", "hint_level": 1}
shown = {
    "solver": graphs["solver"].invoke({"question": "What is 7 times 8?"})["route"],
    "tutor": asyncio.run(graphs["tutor"].ainvoke(lesson))["hint_level"],
    "consolidate": graphs["consolidate"].invoke({})["jobs"],
    "again": graphs["tutor"].invoke(lesson)["reply"][:15],
}
print(json.dumps(shown))
"""

SERVER = """
import asyncio, json, sys
from langgraph_api.graph import collect_graphs_from_env
asyncio.run(collect_graphs_from_env())  # raises for what it would refuse to serve
print(json.dumps(sorted(name.split("__")[-1] for name in sys.modules if "__graphs__" in name)))
"""


def run(code: str, tmp_path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(GRAPHS)],
        cwd=ROOT,
        env=os.environ | {"ELM_HOME": str(tmp_path / "bank"), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_by_path_and_they_answer(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    settings = tmp_path / "elm.toml"
    settings.write_text(
        "max_new_tokens = 4\n[learning]\nsteps = 1\nrollouts = 2\nmax_new_tokens = 4\n[worker]\nmode = 'external'\n"
    )
    out = json.loads(
        run(BY_PATH + ANSWERS, tmp_path, ELM_MODEL=str(model), ELM_TASK="text", ELM_SETTINGS=str(settings))
    )
    assert out == {"solver": "no_memory", "tutor": 2, "consolidate": 2, "again": "It can begin li"}


def test_by_the_loader_of_the_server(tmp_path: Path) -> None:
    if importlib.util.find_spec("langgraph_api") is None:
        pytest.skip("the server package is not installed (pip install 'langgraph-cli[inmem]')")
    environment = {
        "LANGSERVE_GRAPHS": json.dumps(GRAPHS),
        "LANGSMITH_LANGGRAPH_API_VARIANT": "local_dev",
        "LANGGRAPH_RUNTIME_EDITION": "inmem",
        "DATABASE_URI": ":memory:",
        "REDIS_URI": "fake",
        "MIGRATIONS_PATH": "__inmem",
    }
    last = run(SERVER, tmp_path, **environment).splitlines()[-1]
    assert json.loads(last) == sorted(GRAPHS)


def test_the_readme_names_every_graph() -> None:
    text = (ROOT / "graphs" / "README.md").read_text("utf-8")
    for place in GRAPHS.values():
        file = ROOT / place.split(":")[0]
        assert f"`{file.name}`" in text
        assert len(file.read_text("utf-8").splitlines()) <= 40
