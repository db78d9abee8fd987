"""``elm-agent serve`` and ``elm-agent mcp``: what they refuse before anything is loaded, and one whole run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving_commands import serving

from elm_agent.testing.tiny import write_tiny_model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elm_agent.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--host", "0.0.0.0"], "--token-file"),
        (["mcp", "--http", "--host", "::"], "--token-file"),
        (["serve", "--token-file", "nowhere"], "token file 'nowhere' cannot be read"),
        (["mcp", "--token-file", "nowhere"], "--token-file is for --http"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_serve_answers_until_it_is_stopped(tmp_path: Path) -> None:
    token = "t" * 30
    (tmp_path / "tokens").write_text(f"{token} mine\n")
    (tmp_path / "tokens").chmod(0o600)
    variables = {
        "ELM_MODEL": str(write_tiny_model(tmp_path / "tiny")),
        "ELM_HOME": str(tmp_path / "home"),
        "ELM_MAX_NEW_TOKENS": "6",
        "ELM_LEARN": "false",
        "ELM_INDEX": "exact",
    }
    with (
        serving("serve", "--token-file", "tokens", cwd=tmp_path, **variables) as url,
        httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=120) as client,
    ):
        answer = client.post(f"{url}/mine/ask", json={"question": "What is 2 plus 2?"}).json()
        assert answer["route"] == "no_memory"
        assert client.get(f"{url}/default/memories").status_code == 404
        paths = client.get(url.replace("/v1", "/openapi.json")).json()["paths"]
        assert {path.rpartition("/")[2] for path in paths} >= {"ask", "recall", "why", "feedback", "memories", "jobs"}
