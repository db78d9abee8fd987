"""What the harness's arguments mean: settings, a model, a bank that is there already, how an answer is drawn.

Knows settings and banks; knows nothing of the harness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

from elm_agent.errors import InputError, NotFound, SettingsError
from elm_agent.integrations.lm_eval.answers import Answers, Way, finder
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import LanguageModel
from elm_agent.records import MemoryState
from elm_agent.runtime import open_bank, open_model, open_runtime
from elm_agent.settings import Settings, load_settings
from elm_agent.tasks import get_task

READ_ONLY = {"learn": False, "worker": {"mode": "external"}}

READ = frozenset({"do_sample", "until", "max_gen_toks", "temperature"})
"""Generation arguments that mean something here; of others only values that change nothing are taken."""

NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "num_beams": (1,),
}


def way_of(route: str) -> Way:
    """Raises ``SettingsError``."""
    try:
        return Way(route)
    except ValueError:
        raise SettingsError(f"route is {route!r}: expected {', '.join(Way)}") from None


def settings_of(file: str | None, named: Mapping[str, object], others: Mapping[str, Any]) -> Settings:
    """Settings of a file, the environment above it, and arguments on top; those that are None are not given.

    ``others``: ``SECTION__NAME`` for those of a section. No memory serves its own question unless one says so.
    Raises ``SettingsError``.
    """
    nested: dict[str, Any] = {"retrieval": {"exclude_same_question": True}}
    for name, value in others.items():
        *sections, last = name.split("__")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    given = {name: str(value) for name, value in named.items() if value is not None}
    if "device" in given:
        given["device"] = given["device"].partition(":")[0]  # such as cuda:0
    return load_settings(file, **given | nested)


def opened(settings: Settings, way: Way, closing_with: ExitStack) -> tuple[LocalModel, Answers, dict[str, Any]]:
    """The model, who answers, and what is to be told of the bank; ``closing_with`` closes them.

    Raises:
        NotFound: the bank or its namespace is not there: an empty one would answer everything without a memory.
        SettingsError, ModelUnavailable, ModelMismatch, StorageError: as ``open_runtime`` does.
    """
    if way is Way.ZERO_SHOT:
        model = _local(open_model(settings))
        closing_with.callback(model.close)
        return model, Answers(model, get_task("text"), way=way), {}  # no two answers are compared
    _check_bank(settings)
    runtime = closing_with.enter_context(open_runtime(settings.changed(**READ_ONLY), owns_index=False))
    model = _local(runtime.model)
    states = Counter(memory.state for memory in runtime.bank.memories(settings.namespace))
    told = {
        "namespace": settings.namespace,
        "memories": states[MemoryState.ACTIVE],
        "verifier": runtime.verifier.name,
    }
    return model, Answers(model, runtime.task, way=way, find=finder(runtime), verifier=runtime.verifier), told


def temperature_of(arguments: Mapping[str, Any]) -> float:
    """0 for greedy answers. Raises ``InputError`` for what would have to be drawn in a way that is not known here."""
    if not arguments.get("do_sample"):
        return 0.0
    for name, value in arguments.items():
        if name not in READ and value is not None and value not in NEUTRAL.get(name, ()):
            raise InputError(f"generation argument {name}={value!r} is not known here: set another with --gen_kwargs")
    return float(arguments.get("temperature", 1.0))


def _check_bank(settings: Settings) -> None:
    if settings.database_url is None and not settings.home.exists():
        raise NotFound(f"no bank at home {str(settings.home)!r}: name the folder of one, or route=zero_shot")
    with closing(open_bank(settings, owns_index=False)) as bank:
        names = [info.name for info in bank.namespaces()]
    if settings.namespace not in names:
        raise NotFound(
            f"namespace {settings.namespace!r} is not in the bank at {str(settings.home)!r}, which has "
            f"{', '.join(names) or 'none'}: name one of them, or route=zero_shot"
        )


def _local(model: LanguageModel) -> LocalModel:
    if not isinstance(model, LocalModel):
        raise SettingsError(f"the harness needs a LocalModel, whose tokens are known; got {type(model).__name__}")
    return model
