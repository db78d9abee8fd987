"""Every method by name. A name may carry options after a colon, such as ``elm_kv:lora``."""

from __future__ import annotations

from elm_agent.bench.evidence.contract import Method, MethodFactory, Workplace
from elm_agent.errors import InputError

METHODS: dict[str, MethodFactory] = {}
"""``METHODS[name](name, workplace)`` opens a method."""


def open_method(name: str, workplace: Workplace) -> Method:
    """Open a method. Raises ``InputError`` for a name that is not known."""
    return factory_of(name)(name, workplace)


def factory_of(name: str) -> MethodFactory:
    """Who makes a method of this name, options included. Raises ``InputError`` for a name that is not known."""
    factory = METHODS.get(name.partition(":")[0])
    if factory is None:
        raise InputError(f"unknown method {name!r}: expected some of {', '.join(sorted(METHODS))}")
    return factory
