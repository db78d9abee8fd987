"""What a text was computed to be, kept for later questions: the keys and values of its last part, moved to the front.

Knows the network and the tokenizer; knows nothing of where texts come from or which question they may help.
Log-augmented generation (arXiv 2505.14398) reuses past computation this way: the whole text is read, only
the states of its last part are kept, and they are given new positions where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elm_agent.adapters import KeyValues
from elm_agent.errors import InputError, ModelError
from elm_agent.models.engine import LocalModel
from elm_agent.models.step import moved_back
from elm_agent.protocols import Message


def check_logs(model: LocalModel) -> None:
    """Raise ``ModelError`` for a model whose states cannot be kept and put before other rows."""
    if model.network.why_slow is not None:
        raise ModelError(f"stored keys cannot be moved to other positions: {model.network.why_slow}")
    if not model.draws_itself:
        raise ModelError("stored keys and values can be put before the rows of the native engine alone: choose it")


def log_of(
    model: LocalModel, messages: Sequence[Message], text: str, *, memory_id: str, anchor: int = 0
) -> tuple[KeyValues, int]:
    """The states of ``text`` as the answer to ``messages``, at positions from 0, and how many tokens were read.

    A row with them as its prefix goes on after the text, and sees through its states the messages that it answers.

    Args:
        anchor: so many of the first tokens that were read stand before the text's: models put attention that they
            have no use for on the first position (arXiv 2309.17453), whose states nothing else can stand for.

    Raises:
        InputError: the text is empty, or too long together with the messages.
        ModelError: see ``check_logs``.
    """
    check_logs(model)
    network = model.network
    prompt_ids, text_ids = model.encode(messages), model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not text_ids:
        raise InputError("the text has no token: there is nothing to keep of it")
    if len(prompt_ids) + len(text_ids) > model.context_length:
        raise InputError(
            f"messages and text take {len(prompt_ids) + len(text_ids)} positions, more than the model's context of "
            f"{model.context_length}: keep a shorter one"
        )

    @torch.no_grad()
    def read() -> KeyValues:
        prefix, _ = network.read([network.embed([*prompt_ids, *text_ids])])
        keys_LHVD, values_LHVD = _states(prefix.states())
        first, last = slice(anchor), slice(len(prompt_ids), None)
        moved_LHVD = moved_back(network.model, keys_LHVD[:, :, last], len(prompt_ids) - anchor)
        keys_LHVD = torch.cat([keys_LHVD[:, :, first], moved_LHVD], dim=2)
        values_LHVD = torch.cat([values_LHVD[:, :, first], values_LHVD[:, :, last]], dim=2)
        return KeyValues(_kept(keys_LHVD), _kept(values_LHVD), memory_id)

    return model.compute(read), len(prompt_ids) + len(text_ids)


def _states(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (L, H, V, D) of one row. Raises ``ModelError`` where layers differ."""
    if len({(keys.shape, values.shape) for keys, values in layers}) != 1:
        raise ModelError("the layers keep keys and values of different forms, which no stored prefix has")
    return torch.cat([keys for keys, _ in layers]), torch.cat([values for _, values in layers])


def _kept(states: torch.Tensor) -> torch.Tensor:
    return states.detach().to("cpu", torch.float32).contiguous()
