"""What stands in a method's name after the colon, as settings: ``elm_kv:lora+steps=2+retrieval.top_k=3``.

A word is a parameterisation, an objective or a verifier; ``name=value`` is a setting of ``learning``, or of the
section before a dot. Knows nothing of what the settings do.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from elm_agent.errors import InputError, SettingsError
from elm_agent.records import KeyKind, Recipe
from elm_agent.settings import Settings

WORDS = {
    "soft_prompt": ("learning", "parameterisation"),
    "prefix": ("learning", "parameterisation"),
    "lora": ("learning", "parameterisation"),
    "grpo_majority": ("learning", "objective"),
    "sft_greedy": ("learning", "objective"),
    "mean_logprob": ("verification", "verifier"),
    "self_certainty": ("verification", "verifier"),
    "majority": ("verification", "verifier"),
}
"""The setting that a word stands for."""

EPOCHS = 10
"""Steps on each question: as many as a memory of its own has."""

OFFLINE_WORDS = {"full": "parameterisation", "grpo_ground_truth": "objective"}
"""What only a study may do, so that no setting allows it."""


def settings_of(name: str, settings: Settings, *, seed: int) -> Settings:
    """The settings of a method name such as ``elm_kv:lora``.

    Raises:
        InputError: a word that is not known.
        SettingsError: a setting that is not known, or a value that it cannot have.
    """
    base, _, words = name.partition(":")
    changed: dict[str, dict[str, Any]] = {"learning": {"seed": seed}, "retrieval": {}, "verification": {}}
    for kind in KeyKind:
        if base.endswith(f"_{kind.value}"):
            changed["retrieval"]["key"] = kind.value
    for word in filter(None, words.split("+")):
        section, field, value = _setting(name, word)
        changed.setdefault(section, {})[field] = value
    changed["retrieval"]["exclude_same_question"] = True
    try:
        return settings.changed(**changed)
    except SettingsError as error:
        raise SettingsError(f"method {name!r}: {error}") from None


def recipe_of(name: str, settings: Settings, *, seed: int) -> Recipe:
    """The recipe of a method's name, which may also be one that only offline studies can use.

    Raises ``InputError`` or ``SettingsError`` as ``settings_of`` does.
    """
    base, _, words = name.partition(":")
    given = [word for word in words.split("+") if word]
    plain = "+".join(word for word in given if word not in OFFLINE_WORDS)
    recipe = settings_of(f"{base}:{plain}", settings, seed=seed).learning.recipe()
    changed = {OFFLINE_WORDS[word]: word for word in given if word in OFFLINE_WORDS}
    return replace(recipe, **changed)  # type: ignore[arg-type]  # both are fields with a text


def recipe_and_epochs(name: str, settings: Settings, *, seed: int) -> tuple[Recipe, int]:
    """What the name of a method of the whole set says. Raises ``InputError`` or ``SettingsError``."""
    base, _, words = name.partition(":")
    given = [word for word in words.split("+") if word]
    counts = [word.removeprefix("epochs=") for word in given if word.startswith("epochs=")]
    if any(not count.isdecimal() or int(count) < 1 for count in counts):
        raise InputError(f"method {name!r}: epochs are a whole number of at least 1")
    rest = "+".join(word for word in given if not word.startswith("epochs="))
    recipe = recipe_of(f"{base}:{rest}", settings, seed=seed)
    objective = "grpo_ground_truth" if base == "grpo" else "grpo_majority"
    return replace(recipe, objective=objective), int(counts[-1]) if counts else EPOCHS


def _setting(name: str, word: str) -> tuple[str, str, Any]:
    path, equals, value = word.partition("=")
    if not equals:
        if word in OFFLINE_WORDS:
            raise InputError(f"method {name!r}: {word!r} is for studies: use it with `elm-agent bench offline`")
        if word not in WORDS:
            raise InputError(
                f"method {name!r}: unknown word {word!r}: expected NAME=VALUE or one of {', '.join(WORDS)}"
            )
        return *WORDS[word], word
    section, dot, field = path.partition(".")
    if not dot:
        section, field = "learning", path
    try:
        return section, field, json.loads(value)
    except ValueError:
        return section, field, value
