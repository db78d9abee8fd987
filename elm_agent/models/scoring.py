"""How likely given tokens are after others and a memory: what tests of language models ask for. Nothing is drawn.

Knows the network and what memories are made of; knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from elm_agent.adapters import Kept
from elm_agent.errors import InputError, ModelMismatch
from elm_agent.models.engine import LocalModel
from elm_agent.models.head import token_logprobs
from elm_agent.models.network import Network, Prefix
from elm_agent.models.reading import Reader, misfit
from elm_agent.protocols import GenerationRequest
from elm_agent.softprompt import SoftPrompt

_LOGITS = 2**25  # numbers of the logits that are in memory together


@dataclass(frozen=True, slots=True)
class Score:
    """Of one continuation. ``logprob``: nats, of all its tokens; ``greedy``: each of them is the most likely one."""

    logprob: float
    greedy: bool


def score(
    model: LocalModel,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    memory: Kept | None = None,
    rows: int = 16,
) -> list[Score]:
    """The score of each continuation after ``memory`` and ``context``, which are read once.

    ``rows``: most continuations that are read together. Answers go first.

    Raises:
        InputError: the context or a continuation is empty, or both are too long for the model.
        ModelMismatch: the memory is another model's.
    """
    if memory is not None and (why := misfit(model.network, memory)):
        raise ModelMismatch(
            f"memory {memory.memory_id} {why} ({model.fingerprint.name!r}): use the model it was made with"
        )
    if not context or not all(continuations):
        raise InputError("a score needs at least one token before what is scored, and at least one to score")
    before = len(context) + (0 if memory is None else memory.virtual_tokens)
    length = before + max(map(len, continuations), default=1) - 1  # the last token is not read
    if length > model.context_length:
        raise InputError(
            f"{length} positions are to be read, more than the model's context of {model.context_length}"
        )
    request = GenerationRequest(prompt_ids=tuple(context), prefix=memory, max_new_tokens=1)
    return model.compute(partial(_scores, model.network, request, continuations, rows))


@torch.no_grad()
def _scores(
    network: Network, request: GenerationRequest, continuations: Sequence[Sequence[int]], rows: int
) -> list[Score]:
    _, start, logits_1V = Reader(network).read([request], partial(_embedded, network))
    scores: list[Score] = []
    for first in range(0, len(continuations), rows):
        some = [torch.tensor(one, device=network.device) for one in continuations[first : first + rows]]
        lengths_B = torch.tensor([len(one) for one in some], device=network.device)
        tokens_BT = pad_sequence(some, batch_first=True)
        pads_BT = torch.arange(tokens_BT.shape[1], device=network.device) >= lengths_B[:, None]
        totals_B = torch.zeros(len(some), dtype=torch.float64, device=network.device)
        greedy_B = torch.ones(len(some), dtype=torch.bool, device=network.device)
        at = 0
        for logits_BTV in _logits(network, start.shared(len(some)), logits_1V.expand(len(some), -1), tokens_BT):
            part = slice(at, at := at + logits_BTV.shape[1])
            chosen_BT = token_logprobs(logits_BTV, tokens_BT[:, part], 1.0)
            totals_B += chosen_BT.double().masked_fill(pads_BT[:, part], 0.0).sum(dim=1)
            greedy_B &= ((logits_BTV.argmax(dim=-1) == tokens_BT[:, part]) | pads_BT[:, part]).all(dim=1)
        scores += [Score(*pair) for pair in zip(totals_B.tolist(), greedy_B.tolist(), strict=True)]
    return scores


def _logits(
    network: Network, prefix: Prefix, logits_BV: torch.Tensor, tokens_BT: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The logits (B, t, V) from which each token follows, a few positions at a time; ``prefix`` is consumed."""
    rows, length = tokens_BT.shape
    step = max(1, _LOGITS // (rows * logits_BV.shape[-1]))
    yield logits_BV[:, None]
    for first in range(0, length - 1, step):
        yield network.extend(prefix, tokens_BT[:, first : min(first + step, length - 1)])


def _embedded(network: Network, request: GenerationRequest) -> torch.Tensor:
    """(T, E), with the soft prompt if there is one; other memories are no embeddings."""
    text_TE = network.embed(request.prompt_ids)
    if not isinstance(request.prefix, SoftPrompt):
        return text_TE
    return torch.cat([request.prefix.prompt_VE.to(network.device, network.dtype), text_TE])
