"""What stands in a method's name after the colon, as settings: ``elm_kv:lora+steps=2+retrieval.top_k=3``.

A word is a parameterisation, an objective, a verifier, or one of ``BUNDLES``, the settings of an ablation; ``half``
halves the rollouts, ``condensed=20`` condenses the bank after as many questions. ``name=value`` is a setting of
``learning``, or of the section before a dot. Knows nothing of what the settings do.
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
    "mean": ("utility", "ranking"),
    "ucb": ("utility", "ranking"),
    "thompson": ("utility", "ranking"),
    "cheap": ("budget", "tier"),
    "thorough": ("budget", "tier"),
    "auto": ("budget", "tier"),
}
"""The setting that a word stands for."""

BUNDLES: dict[str, dict[str, dict[str, Any]]] = {
    "admission": {
        "admission": {"min_vote_rise": 0.0, "min_length_ratio": 0.1, "max_length_ratio": 2.0, "max_norm_ratio": 2.0}
    },
    "probe": {"admission": {"probe": True}},
    "calibrated": {"abstention": {"mode": "calibrated", "min_uses": 10}},
    "clear": {"learning": {"min_vote_share": 0.75}},
    "opinions": {"verification": {"opinions": 2}},
    "words": {"verification": {"opinions_by": "words"}},
    "example": {"verification": {"example": True}},
    "careful": {"verification": {"lead": 2}},
    "replay": {"learning": {"replay_rollouts": 16}},
    "harm": {"utility": {"quarantine_harm": 0.9}},
    "early": {"learning": {"stop_when_settled": 2, "skip_equal_rewards": True}},
}
"""The settings that a word stands for; what the name says besides counts more. Bounds as in docs/admission.md; fewer
uses than the default for a fit, as streams are short."""

HALF = "half"
LEAST_ROLLOUTS = 2  # of a vote

CONDENSED = "condensed"
CONDENSE_EVERY = 20
"""Questions between two passes, where the word does not say how many."""

ANSWERING = ("retrieval", "utility", "abstention", "budget", "verification")
"""Sections that change nothing of a memory, only when and how it serves."""

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
    condensed_every(name)  # raises for a number that is none
    base, _, words = name.partition(":")
    seeded = {"learning": {"seed": seed}, "utility": {"seed": seed}}
    changed: dict[str, dict[str, Any]] = {**seeded, "retrieval": {}, "verification": {}}
    for kind in KeyKind:
        if base.endswith(f"_{kind.value}"):
            changed["retrieval"]["key"] = kind.value
    given = [word for word in words.split("+") if word and not _condenses(word)]
    for word in given:
        for section, values in BUNDLES.get(word, {}).items():
            changed.setdefault(section, {}).update(values)
    for word in given:
        if word not in BUNDLES and word != HALF:
            section, field, value = _setting(name, word)
            changed.setdefault(section, {})[field] = value
    if HALF in given:
        rollouts = changed["learning"].get("rollouts", settings.learning.rollouts)
        changed["learning"]["rollouts"] = _half(name, rollouts)
    changed["retrieval"]["exclude_same_question"] = True
    try:
        return settings.changed(**changed)
    except SettingsError as error:
        raise SettingsError(f"method {name!r}: {error}") from None


def condensed_every(name: str) -> int | None:
    """After how many questions each the bank is condensed, with merging and distilling; None: never.

    Raises ``InputError`` for a number that is none.
    """
    asked = [word for word in name.partition(":")[2].split("+") if _condenses(word)]
    if not asked:
        return None
    count = asked[-1].partition("=")[2] or str(CONDENSE_EVERY)
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"method {name!r}: {asked[-1]!r} is no number of questions: expected at least 1")
    return int(count)


def _condenses(word: str) -> bool:
    return word.partition("=")[0] == CONDENSED


def recipe_of(name: str, settings: Settings, *, seed: int) -> Recipe:
    """The recipe of a method's name, which may also be one that only offline studies can use.

    Raises ``InputError`` or ``SettingsError`` as ``settings_of`` does.
    """
    given = [word for word in name.partition(":")[2].split("+") if word]
    made = memory_settings(name, settings, seed=seed)
    recipe = made.learning.recipe()
    changed = {OFFLINE_WORDS[word]: word for word in given if word in OFFLINE_WORDS}
    return replace(recipe, **changed)  # type: ignore[arg-type]  # both are fields with a text


def memory_settings(name: str, settings: Settings, *, seed: int) -> Settings:
    """The settings by which a memory that answers alone is made: the offline protocol.

    Raises ``InputError`` or ``SettingsError`` as ``settings_of`` does, and for words that are about answering with a
    bank, which would do nothing there.
    """
    base, _, words = name.partition(":")
    plain = "+".join(word for word in words.split("+") if word and word not in OFFLINE_WORDS)
    made, without = (settings_of(f"{base}:{some}", settings, seed=seed) for some in (plain, ""))
    if condensed_every(name) is not None:
        raise InputError(
            f"method {name!r}: condensing needs a bank, and offline each memory answers alone: use it with "
            "`elm-agent bench online`"
        )
    idle = [one for one in ANSWERING if getattr(made, one) != getattr(without, one)]
    if idle or made.admission.probe != without.admission.probe:
        raise InputError(
            f"method {name!r}: {idle[0] if idle else 'a probe'} needs a bank, and offline each memory answers alone: "
            "use it with `elm-agent bench online`"
        )
    return made


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


def _half(name: str, rollouts: object) -> int:
    if not isinstance(rollouts, int) or rollouts < 2 * LEAST_ROLLOUTS:
        raise InputError(f"method {name!r}: half of {rollouts} rollouts is no vote: expected at least 4 of them")
    return rollouts // 2


def _setting(name: str, word: str) -> tuple[str, str, Any]:
    path, equals, value = word.partition("=")
    if not equals:
        if word in OFFLINE_WORDS:
            raise InputError(f"method {name!r}: {word!r} is for studies: use it with `elm-agent bench offline`")
        if word not in WORDS:
            raise InputError(
                f"method {name!r}: unknown word {word!r}: expected NAME=VALUE or one of "
                f"{', '.join([*WORDS, *BUNDLES, HALF, CONDENSED])}"
            )
        return *WORDS[word], word
    section, dot, field = path.partition(".")
    if not dot:
        section, field = "learning", path
    try:
        return section, field, json.loads(value)
    except ValueError:
        return section, field, value
