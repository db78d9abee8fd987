"""Lending the frozen network to code that wraps, patches and hooks it, and having it back exactly as it was.

Knows modules and configurations; knows nothing of who borrows. Weights are not copied: a borrower that changes
a weight in place cannot be undone here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from elm_agent.models.engine import LocalModel

_State = dict[str, Any]


class Loan:
    """A model in a borrower's hands, held like a training step. Afterwards hooks, patches, modes and configurations
    are what they were, however the borrower ended."""

    def __init__(self, model: LocalModel) -> None:
        self._network = model.network.model
        self._training = model.training
        self._holding = ExitStack()

    def __enter__(self) -> Loan:
        self._holding.enter_context(self._training())
        self._own = _states(self._network)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._own)
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._holding.close()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let answers that wait have the clean model; afterwards the borrower finds its changes again."""
        theirs = _states(self._network)
        _restore(self._own)
        self._holding.close()
        try:
            yield
        finally:
            self._holding.enter_context(self._training())
            _restore(theirs)


def _states(network: torch.nn.Module) -> list[tuple[object, _State]]:
    """Every module and configuration with its attributes; of dictionaries, such as hooks, the content too."""
    configs = [
        getattr(module, name, None) for module in network.modules() for name in ("config", "generation_config")
    ]
    parts = {id(part): part for part in [*network.modules(), *configs] if part is not None}
    return [
        (
            part,
            {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in vars(part).items()},
        )
        for part in parts.values()
    ]


def _restore(states: list[tuple[object, _State]]) -> None:
    """Undo what differs and touch nothing else: other threads may be embedding text at this moment."""
    for part, state in states:
        attributes = vars(part)
        _make_same(attributes, {name: value for name, (value, _) in state.items()})
        for value, content in state.values():
            if content is not None:
                _make_same(value, content)


def _make_same(current: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    for name in current.keys() - wanted.keys():
        del current[name]
    for name, value in wanted.items():
        if name not in current or current[name] is not value:
            current[name] = value
