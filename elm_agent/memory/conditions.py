"""Conditions over a memory's fields, as users write them: ``uses > 9 and utility < 0``. Runs no code of the user's.

The language is rule-engine's, without what could take long: no regular expressions, powers, shifts, functions or
loops, so the work is bounded by the length of the condition and of the fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.storage.selection import MemoryFacts

LONGEST = 1000  # characters

FIELDS = {
    "id": "STRING",
    "state": "STRING",
    "pinned": "BOOLEAN",
    "question": "STRING",
    "task": "STRING",
    "subject": "STRING",
    "origin": "STRING",
    "virtual_tokens": "FLOAT",
    "vote_share": "FLOAT",
    "uses": "FLOAT",
    "useful": "FLOAT",
    "settled": "FLOAT",
    "fixed": "FLOAT",
    "broken": "FLOAT",
    "utility": "FLOAT",
    "age_days": "FLOAT",
    "idle_days": "FLOAT",
    "created_at": "DATETIME",
    "state_since": "DATETIME",
}
"""What a condition can name, and of what type it is. ``subject`` is '' where none is known (with encryption: a
name that does not tell it)."""

_TEXT = re.compile(r"""(["'])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
_REFUSED = re.compile(r"\*\*|<<|>>|~|[$?&|^#{}%:@;`\\]|\bfor\b")

Condition = Callable[["MemoryFacts", datetime], bool]


def condition(text: str) -> Condition:
    """The condition as a function of a memory and the current time.

    Raises:
        InputError: unknown names, other types than the comparison needs, wrong syntax, or what is not allowed.
    """
    if len(text) > LONGEST:
        raise InputError(f"the condition has {len(text)} characters: expected at most {LONGEST}")
    if (found := _REFUSED.search(_TEXT.sub("''", text))) is not None:
        raise InputError(
            f"condition {text[:80]!r} uses {found.group()!r}: expected comparisons of fields joined by and, or, not"
        )
    rule = _compiled(text)

    def holds(facts: MemoryFacts, now: datetime) -> bool:
        try:
            return bool(rule.evaluate(_fields(facts, now)))
        except _failures() as error:
            raise InputError(f"condition {text[:80]!r} fails for memory {facts.id}: {_said(error)}") from None

    return holds


def _compiled(text: str) -> Any:
    from rule_engine import Context, DataType, Rule, type_resolver_from_dict

    types = {name: getattr(DataType, kind) for name, kind in FIELDS.items()}
    context = Context(type_resolver=type_resolver_from_dict(types), default_timezone=UTC)
    try:
        rule = Rule(text, context=context)
    except _failures() as error:
        known = ", ".join(FIELDS)
        raise InputError(f"condition {text[:80]!r} cannot be read: {_said(error)}; the fields are {known}") from None
    if rule.statement.expression.result_type != DataType.BOOLEAN:
        raise InputError(f"condition {text[:80]!r} is neither true nor false: compare it with something")
    return rule


def _failures() -> tuple[type[Exception], ...]:
    from rule_engine import EngineError

    return EngineError, ArithmeticError, RecursionError, TypeError, ValueError


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(getattr(error, "message", None) or error or type(error).__name__)


def _fields(facts: MemoryFacts, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(facts, name) for name in FIELDS if hasattr(facts, name)}
    return values | {
        "state": facts.state.value,
        "subject": facts.subject or "",
        "vote_share": facts.final_vote_share,
        "age_days": (now - facts.created_at).total_seconds() / 86_400,
        "idle_days": (now - facts.fresh_at).total_seconds() / 86_400,
    }
