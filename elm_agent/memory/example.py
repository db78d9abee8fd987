"""A memory in words: its question, and what won its votes, as a turn of the chat before another question.

The soft prompt says how to answer; the example says it again in text that anyone can read. Texts in, a chat out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from elm_agent.protocols import Message, Task
from elm_agent.records import DISTILLED, Episode, MemoryRecord
from elm_agent.tasks.votes import majority


def example_of(memory: MemoryRecord, episode: Episode, task: Task) -> tuple[str, str] | None:
    """The question, and the text that most rollouts wrote of those with the answer that most of them gave.

    All rollouts of the training vote; of equally many the later ones win, and of texts the shorter one. None where no
    rollout has an answer, and of a memory that was distilled from others. Raises ``TaskError`` where the task cannot
    compare.
    """
    if memory.recipe.objective == DISTILLED:
        return None
    newest_first = episode.rollouts[::-1]
    found = majority([one.answer for one in newest_first], task.equivalent)
    winners = [newest_first[place] for place in found.members]
    whole = [one for one in winners if one.finished] or winners
    texts = Counter(one.text.strip() for one in whole)
    if not texts:
        return None
    return episode.question, max(texts, key=lambda text: (texts[text], -len(text)))


def with_turns(task: Task, question: str, examples: Sequence[tuple[str, str]]) -> list[Message]:
    """The task's own chat after turns that ask each example and give its text as the reply.

    What the task says before it asks (a system message) is said once.
    """
    *opening, last = task.messages(question)
    turns: list[Message] = []
    for example, reply in examples:
        turns += [task.messages(example)[-1], {"role": "assistant", "content": reply}]
    return [*opening, *turns, last]
