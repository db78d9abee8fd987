"""The page of a memory's vectors: the model is opened behind a button, and shows what it can."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_helpers import Browser, words_of

from elm_agent import models
from elm_agent.bench.filling import made_up
from elm_agent.errors import ModelUnavailable
from elm_agent.storage.bank import Bank
from elm_agent.testing.tiny import write_tiny_model

FIELDS = {"namespace": "default"}
VERDICTS = "Both answers mean the same|The answers differ|At least one of them has no answer"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = models.load(str(write_tiny_model(tmp_path_factory.mktemp("tiny"))), threads=1)
    yield loaded
    loaded.close()


def learned(bank: Bank, model: Any) -> str:
    bank.bind("default", model.fingerprint)
    [item] = made_up(np.random.default_rng(0), 1, model.fingerprint.width)
    [(memory_id, _)] = bank.adopt("default", [replace(item, model=model.fingerprint)], actor="test")
    return memory_id


def opened(browser: Browser, path: str, memory_id: str) -> None:
    fields = {"form": browser.form_on(path), **FIELDS, "memory": memory_id}
    answer = browser.post("/model", fields)
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    while browser.get("/model.json").json()["state"] == "running":
        pass


def test_the_model_is_opened_on_demand_and_shows_words_and_answers(local_bank: Bank, tiny: Any) -> None:
    memory_id = learned(local_bank, tiny)
    asked = []

    def open_model() -> Any:
        asked.append(1)
        return tiny

    browser, path = Browser(local_bank, open_model=open_model), f"/n/default/memories/{memory_id}/vectors"
    assert "The model is not open" in browser.text(path)
    assert asked == []
    opened(browser, path, memory_id)
    page = browser.get(path).text
    assert len(re.findall(r'<th scope="row" class="n">\d+</th>', page)) == 4  # virtual tokens
    assert "Together they moved" in page
    fields = {"form": browser.form_on(path), "question": "What is 2 + 2?"}
    tried = browser.post(path.replace("/vectors", "/try"), fields)
    assert tried.status_code == 200
    assert "With the memory:" in words_of(tried)
    assert len(re.findall(VERDICTS, words_of(tried))) == 1
    assert asked == [1]
    assert local_bank.uses("default") == []  # nothing is kept
    blank = browser.post(path.replace("/vectors", "/try"), {**fields, "question": " "})
    assert blank.status_code == 400
    binary = browser.post(path.replace("/vectors", "/try"), {**fields, "question": "\x00\x01"})
    assert binary.status_code == 400
    huge = browser.post(path.replace("/vectors", "/try"), {**fields, "question": "x" * 30_000})
    assert huge.status_code == 413
    long = browser.post(path.replace("/vectors", "/try"), {**fields, "question": "x" * 1999})
    assert long.status_code == 400
    assert "shorten it" in words_of(long)


def test_a_model_that_cannot_be_opened_says_why(local_bank: Bank, tiny: Any) -> None:
    memory_id = learned(local_bank, tiny)

    def open_model() -> Any:
        raise ModelUnavailable("it is not here")

    browser, path = Browser(local_bank, open_model=open_model), f"/n/default/memories/{memory_id}/vectors"
    opened(browser, path, memory_id)
    assert "it is not here" in browser.text(path)


def test_a_page_without_a_model_says_so(local_bank: Bank, tiny: Any) -> None:
    memory_id = learned(local_bank, tiny)
    browser, path = Browser(local_bank), f"/n/default/memories/{memory_id}/vectors"
    assert "This page opens no model." in browser.text(path)
    form = browser.form_on(f"/n/default/memories/{memory_id}")
    assert browser.post("/model", {"form": form, **FIELDS}).status_code == 400
    answer = browser.post(path.replace("/vectors", "/try"), {"form": form, "question": "q"})
    assert answer.status_code == 400


def test_a_tensor_that_is_gone_is_one_sentence(local_bank: Bank, tiny: Any, tmp_path: Path) -> None:
    memory_id = learned(local_bank, tiny)
    browser, path = Browser(local_bank, open_model=lambda: tiny), f"/n/default/memories/{memory_id}/vectors"
    opened(browser, path, memory_id)
    for file in (tmp_path / "tensors").rglob("*.safetensors"):
        file.unlink()
    answer = browser.get(path)
    assert answer.status_code == 500
    assert answer.text.count('<p role="alert">') == 1
    assert "Traceback" not in answer.text
