"""What is inside a soft prompt: the words its vectors are near to, and how far each moved from where it began.

Also the question of an auditor: what does the model say with this memory, and what without it? Keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from elm_agent.errors import ModelMismatch
from elm_agent.memory.answering import ask, check_question
from elm_agent.models.engine import LocalModel
from elm_agent.models.vocabulary import Near, nearest_tokens
from elm_agent.records import MemoryRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.tasks import get_task
from elm_agent.training.numerics import initial_prompt

if TYPE_CHECKING:
    from elm_agent.adapters import Kept

NEAREST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRow:
    """One virtual token. ``began``: the token it began as; ``moved``: the distance from there; ``cosine``: to it."""

    began: str
    near: tuple[Near, ...]
    moved: float
    cosine: float
    length: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorView:
    """``rows``: one for each virtual token; none for memories of another kind, which ``kind`` names."""

    kind: str
    rows: tuple[VectorRow, ...]
    moved: float  # of all rows together
    length: float


@dataclass(frozen=True, slots=True)
class Tried:
    """What the model said to one question, greedily, and the answers found in it.

    ``same``: whether both answers mean the same; None where at least one text has no answer.
    """

    question: str
    with_text: str
    with_answer: str | None
    without_text: str
    without_answer: str | None
    same: bool | None


@torch.no_grad()
def view_vectors(model: LocalModel, memory: MemoryRecord, kept: Kept) -> VectorView:
    """Raises ``ModelMismatch`` for a memory of another model."""
    _check(model, memory)
    if not isinstance(kept, SoftPrompt):
        return VectorView(kind=kept.parameterisation, rows=(), moved=0.0, length=0.0)
    prompt_VE = kept.prompt_VE
    began_VE = initial_prompt(model.text_embeddings(memory.question).cpu(), kept.virtual_tokens).float()
    moved_VE = prompt_VE - began_VE
    cosines_V = torch.nn.functional.cosine_similarity(prompt_VE, began_VE, dim=-1)
    near = nearest_tokens(model, prompt_VE, NEAREST)
    began = nearest_tokens(model, began_VE, 1)
    rows = tuple(
        VectorRow(
            began=began[n][0].token,
            near=tuple(near[n]),
            moved=float(moved_VE[n].norm()),
            cosine=float(cosines_V[n]),
            length=float(prompt_VE[n].norm()),
        )
        for n in range(kept.virtual_tokens)
    )
    return VectorView(kind="soft_prompt", rows=rows, moved=float(moved_VE.norm()), length=float(prompt_VE.norm()))


def try_memory(model: LocalModel, memory: MemoryRecord, kept: Kept, question: str, *, max_new_tokens: int) -> Tried:
    """Both answers, in one batch where the memory's kind allows. Raises ``InputError``, ``ModelMismatch``."""
    _check(model, memory)
    task = get_task(memory.task)
    check_question(question)
    asked = [ask(question, model=model, task=task, max_new_tokens=max_new_tokens, prefix=one) for one in (kept, None)]
    told, plain = (future.result().text for future in asked)
    answer, other = task.extract(told), task.extract(plain)
    same = None if answer is None or other is None else task.equivalent(answer, other)
    return Tried(question, told, answer, plain, other, same)


def _check(model: LocalModel, memory: MemoryRecord) -> None:
    if memory.model.id != model.fingerprint.id:
        raise ModelMismatch(
            f"memory {memory.id} was made with model {memory.model.name!r}; the open one is "
            f"{model.fingerprint.name!r}: start the page with --model {memory.model.name}"
        )
