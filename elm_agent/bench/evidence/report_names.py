"""What the name of a method means, in words: ``elm_input:half+clear``. Knows nothing of runs or figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from elm_agent.bench.evidence.methods.variants import (
    BUNDLES,
    CONDENSE_EVERY,
    CONDENSED,
    HALF,
    OFFLINE_WORDS,
    WORDS,
)
from elm_agent.records import KeyKind
from elm_agent.settings import Settings

BASES = {
    "zero_shot": "the plain greedy answer; nothing is learned",
    "elm": "the agent",
    "oracle": "the agent, but the right one of its two answers is returned",
    "ttrl": "the model itself trained on the whole set, rewarded by votes",
    "grpo": "the model itself trained on the whole set, rewarded by the right answers",
    "self_consistency": "the majority of {} samples",
    "verifier_at_2": "two samples, of which the verifier takes one",
    "icl": "the nearest past question and its answer stand before the question",
    "reasoning_bank": "the strategy of the nearest past question stands before the question",
    "lag": "keys and values of the nearest past answer",
    "lag_tts": "keys and values of the nearest past answer, which won a vote of {} samples",
    "dynamic_cheatsheet": "a cheatsheet that the model rewrites after each question",
    "exp_rag": "the {} nearest past questions stand before the question, with answer and feedback",
}
"""What each method does; ``{}``: the number that its name may end in."""

NUMBERS = {"exp_rag": "three"}
"""Of a name without one; the others say "many"."""

Setting = tuple[str, str, object]
"""Section, name, value."""


def in_words(method: str) -> str:
    """A line about a method; words that are not known stay as they are."""
    base, _, words = method.partition(":")
    kind = _key_of(base)
    known = base if kind is None else base.removesuffix(f"_{kind}")
    told = BASES.get(known, base)
    if "{}" in told:
        return told.format(words or NUMBERS.get(known, "many"))
    parts = [part for word in words.split("+") if word for part in _parts(word)]
    return ", ".join([told, *([f"key {kind}"] if kind else []), *parts])


def settings_told(methods: Iterable[str]) -> dict[str, str]:
    """What the settings in these names are, by their names in words, as ``Settings`` describes them."""
    found = {}
    for method in methods:
        base, _, words = method.partition(":")
        named: list[Setting] = [("retrieval", "key", kind)] if (kind := _key_of(base)) else []
        named += [one for word in words.split("+") for one in _settings(word)]
        for section, name, _ in named:
            if (description := _described(section, name)) is not None:
                found[_spelt(section, name)] = description.replace("`", "")
    return found


def _key_of(base: str) -> str | None:
    return next((kind.value for kind in KeyKind if base.endswith(f"_{kind.value}")), None)


def _parts(word: str) -> Iterator[str]:
    if word == HALF:
        yield "half of the rollouts"
    elif word.partition("=")[0] == CONDENSED:
        yield f"bank condensed after every {word.partition('=')[2] or CONDENSE_EVERY} questions"
    elif found := list(_settings(word)):
        yield from map(_told, found)
    else:
        yield word


def _settings(word: str) -> Iterator[Setting]:
    """What a word of a name stands for."""
    path, equals, value = word.partition("=")
    if path == CONDENSED:
        return
    if equals:
        section, dot, name = path.partition(".")
        yield (section, name, value) if dot else ("learning", path, value)
    elif word in BUNDLES:
        yield from ((section, name, value) for section, all_ in BUNDLES[word].items() for name, value in all_.items())
    elif word in WORDS:
        yield (*WORDS[word], word)
    elif word in OFFLINE_WORDS:
        yield "learning", OFFLINE_WORDS[word], word


def _told(setting: Setting) -> str:
    """``("learning", "rollouts", 2)`` is ``2 rollouts``."""
    section, name, value = setting
    value = str(value).lower() if isinstance(value, bool) else str(value)
    spelt = _spelt(section, name)
    if value in ("true", "false"):
        return spelt if value == "true" else f"no {spelt}"
    if value.isdecimal() and name.endswith("s") and not name.startswith(("min_", "max_")):
        return f"{value} {spelt.removesuffix('s') if value == '1' else spelt}"
    return f"{spelt} {value}"


def _spelt(section: str, name: str) -> str:
    words = name.replace("_", " ")
    return words if section in ("learning", "retrieval", "verification") else f"{section} {words}"


def _described(section: str, name: str) -> str | None:
    field = Settings.model_fields.get(section)
    fields = getattr(field.annotation, "model_fields", {}) if field is not None else {}
    return fields[name].description if name in fields else None
