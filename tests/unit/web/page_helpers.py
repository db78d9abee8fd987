"""A small bank with a story, and a browser that only speaks HTTP: what the tests of the page share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import numpy as np
from httpx2 import Response
from starlette.testclient import TestClient

from elm_agent.bench.filling import made_up, model_of, use_of
from elm_agent.records import Recipe, Route, UseOutcome, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.web.app import create_app

WIDTH = 16
ORIGIN = "http://localhost:8010"
RECIPE = Recipe(virtual_tokens=4)

Learn = Callable[..., str]


class Browser:
    """Sends what a browser sends: its origin, its cookie, and the fields that a form of the page holds."""

    def __init__(self, bank: Bank, **options: Any) -> None:
        self.client = TestClient(create_app(bank, **options), base_url=ORIGIN, follow_redirects=False)

    def get(self, path: str, **more: Any) -> Response:
        answer: Response = self.client.get(path, **more)
        return answer

    def text(self, path: str) -> str:
        """The words of a page that must be fine, without its tags."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return words_of(answer)

    def post(self, path: str, fields: dict[str, Any], **headers: str) -> Response:
        answer: Response = self.client.post(path, data=fields, headers={"origin": ORIGIN} | headers)
        return answer

    def form_on(self, path: str) -> str:
        """What every form of this session carries."""
        found = re.search(r'name="form" value="(\w+)"', self.get(path).text)
        assert found is not None, path
        return found[1]

    def press(self, path: str, action: str, **fields: Any) -> Response:
        """Fill the memory's own form in and press the button."""
        page = self.get(path).text
        revision = re.search(r'name="revision" value="(\d+)"', page)
        assert revision is not None
        return self.post(f"{path}/{action}", {"form": self.form_on(path), "revision": revision[1], **fields})


def words_of(answer: Response) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


def fill(bank: Bank, namespace: str, count: int, *, at_once: bool = False, **other: Any) -> list[str]:
    """So many active memories, asked "What is 0 times 7?" and so on, one after the other in time or ``at_once``."""
    bank.bind(namespace, model_of(WIDTH))
    items = [
        replace(item, question=f"What is {n} times 7?", final_vote_share=n / count, **other)
        for n, item in enumerate(made_up(np.random.default_rng(0), count, WIDTH))
    ]
    if at_once:
        return [memory_id for memory_id, _ in bank.adopt(namespace, items, actor="test")]
    return [bank.adopt(namespace, [item], actor="test")[0][0] for item in items]


def use(bank: Bank, namespace: str, memory_id: str, outcome: UseOutcome, route: Route, ago: float = 0.0) -> None:
    when = utcnow() - timedelta(seconds=ago)
    bank.record_use(use_of(namespace, memory_id, outcome=outcome, route=route, created_at=when))
