"""``elm-agent web``: what it refuses before anything is opened, and one whole run."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from cli_calls import Elm, assert_one_sentence
from serving_commands import serving

from elm_agent import Settings, open_bank
from elm_agent.bench.filling import fill, model_of


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--host", "0.0.0.0"], "--token-file", 2),
        (["--host", "example.org"], "--token-file", 2),
        (["--token-file", "nowhere"], "token file 'nowhere' cannot be read", 2),
        ([], "there is no bank in .elm", 3),
    ],
)
def test_what_cannot_be_served_is_said_at_once(elm: Elm, words: list[str], said: str, code: int) -> None:
    assert_one_sentence(elm("web", "--port", "0", *words), code, said)


def test_a_token_file_that_others_can_read_is_refused(elm: Elm, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("t" * 30)
    (tmp_path / "tokens").chmod(0o644)
    assert_one_sentence(elm("web", "--host", "0.0.0.0", "--token-file", "tokens"), 2, "chmod 600 tokens")


def test_a_missing_package_is_named_with_the_command(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elm_agent.api.serving.find_spec", lambda name: None if name == "starlette" else name)
    assert_one_sentence(elm("web"), 2, "pip install 'elm-agent[web]'")


def first_of(client: httpx.Client, namespace: str) -> str:
    """The address of a memory."""
    found = re.search(rf'href="(/n/{namespace}/memories/mem_\w+)"', client.get(f"/n/{namespace}/memories").text)
    assert found is not None
    return found[1]


def test_it_serves_until_it_is_stopped_and_shows_one_namespace(tmp_path: Path) -> None:
    with closing(open_bank(Settings(home=tmp_path / "home", index="exact"))) as bank:
        for name in ("mine", "shared", "other"):
            bank.bind(name, model_of(8))
            assert list(fill(bank, name, np.random.default_rng(0), 2, 8)) == [2]
    variables = {"ELM_HOME": str(tmp_path / "home"), "ELM_SHARED_NAMESPACES": '["shared"]'}
    with (
        serving("web", "--namespace", "mine", cwd=tmp_path, **variables) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=120) as client,
    ):
        overview = client.get("/").text
        assert ">mine<" in overview
        assert ">shared<" in overview
        assert ">other<" not in overview
        assert "/n/other" not in overview
        assert "only reads" not in client.get(first_of(client, "mine")).text
        assert "This page only reads the namespace." in client.get(first_of(client, "shared")).text
        assert client.get("/n/other/memories").status_code == 404
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
