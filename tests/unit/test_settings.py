"""Where a setting comes from, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from elm_agent.errors import SettingsError
from elm_agent.records import Recipe
from elm_agent.settings import Settings, check_namespace, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "elm.toml"
    path.write_text('namespace = "file"\ntask = "number"\n[learning]\nsteps = 3\nrollouts = 5\n', "utf-8")
    return path


def test_arguments_beat_the_environment_which_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_NAMESPACE", "environment")
    monkeypatch.setenv("ELM_LEARNING__STEPS", "4")
    settings = load_settings(file)
    assert (settings.namespace, settings.task) == ("environment", "number")
    assert (settings.learning.steps, settings.learning.rollouts) == (4, 5)
    settings = load_settings(file, namespace="argument", learning={"steps": 6})
    assert (settings.namespace, settings.learning.steps, settings.learning.rollouts) == ("argument", 6, 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nonsense = 1", "unknown setting 'nonsense'"),
        ("[learning]\nstep = 1", "unknown setting 'learning.step'"),
        ("[learning]\nsteps = 0", "setting 'learning.steps': got '0'"),
        ("model =", "is not TOML"),
    ],
)
def test_a_file_with_a_fault_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "elm.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(SettingsError, match=sentence) as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml' does not exist"):
        load_settings(tmp_path / "missing.toml")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "a\0b", "ä", "x" * 101, "\u202eabc"])
def test_unusable_namespaces_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="is not usable"):
        check_namespace(name)
    with pytest.raises(SettingsError):
        Settings(namespace=name)


@pytest.mark.parametrize("name", ["default", "ada", "team-1.lab_2", "_x", "x" * 100])
def test_usable_namespaces_pass(name: str) -> None:
    assert Settings(namespace=name).namespace == name


def test_the_recipe_is_the_learning_section() -> None:
    settings = Settings(learning={"steps": 2, "temperature": 0.9})
    recipe = settings.learning.recipe()
    assert (recipe.steps, recipe.temperature, recipe.parameterisation) == (2, 0.9, "soft_prompt")
    assert recipe.id != Settings().learning.recipe().id


@pytest.mark.parametrize(
    ("learning", "sentence"),
    [
        ({"objective": "grpo_ground_truth"}, "reference answers, which an agent has not"),
        ({"objective": "sft_greedy", "beta": 0.1}, "no votes and no KL term; beta is 0.1"),
        ({"objective": "sft_greedy", "trainer": "trl"}, "trainer 'trl' knows the objective 'grpo_majority' alone"),
        ({"stop_when_settled": 2, "trainer": "trl"}, "and no approximation: use trainer 'native'"),
        ({"parameterisation": "full"}, "a copy of the whole model, which no bank keeps"),
        (
            {"parameterisation": "lora", "trainer": "trl"},
            "trainer 'trl' knows the parameterisation 'soft_prompt' alone",
        ),
    ],
)
def test_learning_that_makes_no_sense_is_refused_in_one_sentence(learning: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        Settings(learning=learning)
    assert "\n" not in str(caught.value)
    assert not re.search(r"Value error|[{}]", str(caught.value))


def test_no_approximation_is_on_by_itself() -> None:
    assert Settings().learning.recipe() == Recipe()
    assert Recipe().approximations == ()
    assert Settings(learning={"stop_when_settled": 2}).learning.recipe().approximations == ("stop_when_settled",)


def test_every_setting_says_what_it_is() -> None:
    def undescribed(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undescribed(field.annotation, f"{name}.")
            elif not field.description:
                yield prefix + name

    assert list(undescribed(Settings)) == []
