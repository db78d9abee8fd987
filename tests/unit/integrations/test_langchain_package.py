"""The package of the binding: light to import, complete, and clear about what is missing."""

from __future__ import annotations

import subprocess
import sys

import elm_agent.integrations.langchain as binding


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()


def test_every_name_is_there() -> None:
    assert all(getattr(binding, name).__name__ == name for name in binding.__all__)
    assert sorted(binding._HOMES) == sorted(binding.__all__)


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = "print([n for n in ('torch', 'langchain', 'sqlalchemy', 'transformers') if n in sys.modules])"
    assert run(f"import sys, elm_agent.integrations.langchain; {loaded}") == "[]"
    assert run(f"import sys; from elm_agent.integrations.langchain import ChatELM; ChatELM(); {loaded}") == "[]"


def test_a_missing_langchain_is_one_sentence_and_costs_the_middleware_alone() -> None:
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "from elm_agent.integrations.langchain import ChatELM, ElmMemoryRetriever, MemoryBankStore, memory_tools\n"
        "from elm_agent.errors import SettingsError\n"
        "try:\n    from elm_agent.integrations.langchain import ElmMemoryMiddleware\n"
        "except SettingsError as error:\n    print(error)"
    )
    assert run(code) == "ElmMemoryMiddleware needs LangChain: run `pip install 'elm-agent[langchain]'`"
