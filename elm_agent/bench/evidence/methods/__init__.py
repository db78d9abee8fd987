"""Every method by name. A name may carry options after a colon, such as ``elm_kv:lora``."""

from __future__ import annotations

from importlib import import_module

from elm_agent.bench.evidence.contract import Maker, MakerFactory, Method, MethodFactory, Workplace
from elm_agent.errors import InputError


def _made_by(path: str) -> MethodFactory:
    """The class at ``module:Class`` of this folder, imported when it is wanted: some of them load torch."""

    def make(name: str, workplace: Workplace) -> Method:
        module, _, kind = path.partition(":")
        method: Method = getattr(import_module(f"{__name__}.{module}"), kind)(name, workplace)
        return method

    return make


def _maker_by(path: str) -> MakerFactory:
    def make(name: str, workplace: Workplace) -> Maker:
        module, _, kind = path.partition(":")
        maker: Maker = getattr(import_module(f"{__name__}.{module}"), kind)(name, workplace)
        return maker

    return make


METHODS: dict[str, MethodFactory] = {
    "zero_shot": _made_by("zero_shot:ZeroShot"),
    "elm": _made_by("elm:Elm"),
    "elm_input": _made_by("elm:Elm"),
    "elm_kv": _made_by("elm:Elm"),
    "oracle": _made_by("elm:Oracle"),
    "oracle_input": _made_by("elm:Oracle"),
    "oracle_kv": _made_by("elm:Oracle"),
    "ttrl": _made_by("whole_set:WholeSet"),
    "grpo": _made_by("whole_set:WholeSet"),
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

MAKERS: dict[str, MakerFactory] = {"elm": _maker_by("elm_alone:ElmAlone")}
"""``MAKERS[name](name, workplace)`` opens what makes memories for the offline protocol."""

NUMBERED = frozenset({"self_consistency", "lag_tts", "exp_rag"})
"""Methods whose name may end in a number: of samples, or of what is retrieved."""

WHOLE_SET = frozenset({"ttrl", "grpo"})
"""Methods that learn from the whole set before the first answer: the offline protocol alone has them."""

LEARNING_NOTHING = frozenset({"zero_shot", "self_consistency", "verifier_at_2"})
"""Methods that answer alike whatever came before: no source is gone through for them."""

SEEDLESS = frozenset({"zero_shot"})
"""Of those, the ones that draw nothing either: their answers are the same for every seed."""


def open_method(name: str, workplace: Workplace) -> Method:
    """Open a method. Raises ``InputError`` for a name that is not known."""
    return factory_of(name)(name, workplace)


def factory_of(name: str) -> MethodFactory:
    """Who makes a method of this name, options included. Raises ``InputError`` for a name that is not known."""
    factory = METHODS.get(name.partition(":")[0])
    if factory is None:
        raise InputError(f"unknown method {name!r}: expected some of {', '.join(sorted(METHODS))}")
    if not name.startswith(("elm", "oracle", *WHOLE_SET)):  # those read their words themselves: ``variants``
        _check_number(name)
    return factory


def _check_number(name: str) -> None:
    base, colon, option = name.partition(":")
    if colon and base not in NUMBERED:
        raise InputError(f"method {base!r} has no options; got {name!r}")
    if colon and not (option.isdecimal() and int(option) > 0):
        raise InputError(f"method {name!r}: expected {base} or {base}:N with a number N from 1")
