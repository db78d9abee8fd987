"""What the graph's tests ask, and how they open a runtime."""

from __future__ import annotations

from collections.abc import Callable

from elm_agent import Runtime

FIRST = {"question": "What is 7 times 8?"}
SECOND = {"question": "What is 7 times 9?"}

Open = Callable[..., Runtime]
