"""Who draws tokens: what the engine asks of its own network's ``Serving``, or of one that has another engine do it.

Knows the shape of both alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import torch

from elm_agent.models.decoding import Row
from elm_agent.models.lease import ModelLease
from elm_agent.models.network import Network
from elm_agent.models.serving import Reply, Start, Tokens
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation


class Drawing(Protocol):
    """Draws the tokens of answers and rollouts, whoever asks, from any thread. ``Serving`` is one."""

    @property
    def context_length(self) -> int:
        """Most positions of a row, prompt and completion; longer ones are not submitted."""
        ...

    def submit(self, request: GenerationRequest, tokens: Tokens | None = None) -> Reply:
        """Queue one answer; its reply is a ``Generation``. Raises ``ModelError`` when closed."""
        ...

    def submit_group(self, start: Start, rows: Sequence[Row]) -> list[Reply]:
        """Queue rollouts of one start; their replies are rows. Raises ``ModelError`` when closed."""
        ...

    def close(self) -> None:
        """Finish what is queued and stop. Idempotent."""
        ...


class Drawer(Protocol):
    """Makes a ``Drawing`` for a network; see ``Serving`` for the arguments."""

    def __call__(
        self,
        network: Network,
        lease: ModelLease,
        *,
        end_ids: Sequence[int],
        embed: Callable[[GenerationRequest], torch.Tensor],
        finish: Callable[[Row, float], Generation],
        context_length: int,
        max_rows: int,
    ) -> Drawing: ...


class TokenSource(Protocol):
    """Another engine with the same weights, that draws tokens after embeddings. Used from one event loop."""

    @property
    def context_length(self) -> int:
        """Most positions of a row, prompt and completion."""
        ...

    def draw(
        self,
        embeds_TE: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        end_ids: Sequence[int],
        urgent: bool,
    ) -> AsyncGenerator[tuple[list[int], list[float]], None]:
        """The next tokens of one row and their log-probabilities in nats, at ``temperature`` (0: greedy, and then at
        1), until an end token, which is the last one, or the limit. Closed early, the row is given up.

        ``urgent``: before rows that are not. Raises ``ModelError``.
        """
        ...

    def close(self) -> None:
        """Stop the engine and give its memory back. Idempotent."""
        ...
