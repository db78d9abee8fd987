"""Every method by name. A name may carry options after a colon, such as ``elm_kv:lora``."""

from __future__ import annotations

from importlib import import_module

from elm_agent.bench.evidence.contract import Method, MethodFactory, Workplace
from elm_agent.errors import InputError


def _made_by(path: str) -> MethodFactory:
    """The class at ``module:Class`` of this folder, imported when it is wanted: some of them load torch."""

    def make(name: str, workplace: Workplace) -> Method:
        module, _, kind = path.partition(":")
        method: Method = getattr(import_module(f"{__name__}.{module}"), kind)(name, workplace)
        return method

    return make


METHODS: dict[str, MethodFactory] = {
    "self_consistency": _made_by("self_consistency:SelfConsistency"),
    "verifier_at_2": _made_by("verifier_at_2:VerifierAt2"),
    "icl": _made_by("icl:Icl"),
    "reasoning_bank": _made_by("reasoning_bank:ReasoningBank"),
    "lag": _made_by("lag:Lag"),
    "lag_tts": _made_by("lag:LagTts"),
    "dynamic_cheatsheet": _made_by("dynamic_cheatsheet:DynamicCheatsheet"),
    "exp_rag": _made_by("exp_rag:ExpRag"),
}
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
