"""Loading by every kind of name, what it refuses and with which sentence."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elm_agent import models
from elm_agent.errors import ModelUnavailable
from elm_agent.models import fingerprint
from elm_agent.models.loading import Loaded, load_pretrained, resolve
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.testing.tiny_gguf import write_tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(name: Path | str, cache: Path, **options: str) -> Loaded:
    return load_pretrained(str(name), cache_dir=cache, offline=True, device="cpu", **options)


def test_a_folder_loads_frozen(folder: Path, cache: Path) -> None:
    loaded = load(folder, cache)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert loaded.fingerprint.width == 32
    assert loaded.fingerprint.name == str(folder)


def test_dtype_by_name(folder: Path, cache: Path) -> None:
    assert load(folder, cache, dtype="float64").model.dtype == torch.float64


def test_importing_the_loader_leaves_the_public_function() -> None:
    assert callable(models.load)


def test_a_family_that_is_only_known_to_transformers_says_so_once(
    folder: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_tiny_model(tmp_path / "gpt2", architecture="gpt2")
    for name in (folder, other):
        models.load(str(name), cache_dir=cache, offline=True, device="cpu").close()
    (line,) = caplog.messages
    assert line.startswith(
        f"model {str(other)!r} is run as it is, correct but slower: its architecture 'gpt2' is not"
    )


def test_loading_says_nothing(folder: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder, cache)
    assert capfd.readouterr() == ("", "")


class TestFingerprint:
    def test_copies_have_the_same_identity(self, folder: Path, cache: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        assert load(copy, cache).fingerprint.id == load(folder, cache).fingerprint.id

    def test_one_changed_weight_shows(self, folder: Path, cache: Path) -> None:
        before = load(folder, cache).fingerprint
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["model.norm.weight"][0] += 1
        save_file(weights, file, metadata={"format": "pt"})
        after = load(folder, cache).fingerprint
        assert after.weights != before.weights
        assert (after.tokenizer, after.template) == (before.tokenizer, before.template)

    def test_a_changed_template_shows(self, folder: Path, cache: Path) -> None:
        before = load(folder, cache).fingerprint
        with (folder / "chat_template.jinja").open("a") as file:
            file.write("!")
        after = load(folder, cache).fingerprint
        assert after.template != before.template
        assert after.weights == before.weights

    def test_layout_of_the_tokenizer_file_does_not_count(self, folder: Path, cache: Path) -> None:
        before = load(folder, cache).fingerprint
        file = folder / "tokenizer.json"
        file.write_text(file.read_text("utf-8") + "\n\n", "utf-8")
        assert load(folder, cache).fingerprint == before

    def test_digests_are_remembered_until_the_file_changes(self, tmp_path: Path) -> None:
        file, asked = tmp_path / "file", []

        def digest(path: Path) -> str:
            asked.append(path)
            return path.read_text()

        file.write_text("one")
        assert [fingerprint.remembered_digest(file, digest, tmp_path / "c") for _ in range(2)] == ["one", "one"]
        assert len(asked) == 1
        file.write_text("two")
        os.utime(file, ns=(1, 1))
        assert fingerprint.remembered_digest(file, digest, tmp_path / "c") == "two"


class TestGguf:
    def test_a_file_is_converted_once_to_the_same_weights(self, folder: Path, cache: Path, tmp_path: Path) -> None:
        gguf = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
        converted = resolve(str(gguf), cache_dir=cache, offline=True)
        original, weights = (load_file(path / "model.safetensors") for path in (folder, converted))
        assert original.keys() == weights.keys()
        assert all(torch.equal(original[name], weights[name]) for name in original)
        made = (converted / "model.safetensors").stat().st_mtime_ns
        assert resolve(str(shutil.copy(gguf, tmp_path / "other.gguf")), cache_dir=cache, offline=True) == converted
        assert (converted / "model.safetensors").stat().st_mtime_ns == made
        assert not list((cache / "models").glob(".*"))

    def test_a_file_in_a_folder_is_named_by_a_setting(self, folder: Path, cache: Path, tmp_path: Path) -> None:
        (tmp_path / "box").mkdir()
        write_tiny_gguf(folder, tmp_path / "box" / "tiny.gguf")
        loaded = load(tmp_path / "box", cache, gguf_file="tiny.gguf")
        text = "<|im_start|>user\nab<|im_end|>\n"
        assert loaded.tokenizer.encode(text) == load(folder, cache).tokenizer.encode(text)
        with pytest.raises(ModelUnavailable, match=r"no config.json; set `gguf_file` to one of tiny.gguf"):
            load(tmp_path / "box", cache)

    def test_not_a_gguf(self, cache: Path, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
        with pytest.raises(ModelUnavailable, match=r"is not a GGUF file: it begins with b'PK"):
            load(tmp_path / "x.gguf", cache)

    @pytest.mark.parametrize("keep", [6, 300, 0.9])
    def test_truncated(self, folder: Path, cache: Path, tmp_path: Path, keep: float) -> None:
        gguf = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
        size = gguf.stat().st_size
        os.truncate(gguf, int(keep * size) if keep < 1 else int(keep))
        with pytest.raises(ModelUnavailable, match="cannot be converted"):
            load(gguf, cache)
        assert not [path for path in (cache / "models").iterdir() if path.is_dir()]

    def test_missing(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable, match="no such file or folder"):
            load(tmp_path / "no.gguf", cache)


class TestRefusals:
    def test_unknown_name_offline(self, cache: Path) -> None:
        with pytest.raises(ModelUnavailable, match=r"no-such-model.*`offline` is on.*smollm2-135m"):
            load("no-such-model", cache)

    def test_not_even_a_name(self, cache: Path) -> None:
        with pytest.raises(ModelUnavailable, match="not an embedded name, a path or a hub id"):
            load("what is this?", cache)

    def test_missing_folder(self, cache: Path) -> None:
        with pytest.raises(ModelUnavailable, match="no such file or folder"):
            load("./nowhere", cache)

    def test_folder_without_a_model(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelUnavailable, match=r"no config.json"):
            load(tmp_path, cache)

    def test_pickled_weights_only(self, folder: Path, cache: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelUnavailable, match="no safetensors weights"):
            load(folder, cache)

    def test_truncated_weights(self, folder: Path, cache: Path) -> None:
        os.truncate(folder / "model.safetensors", 5000)
        with pytest.raises(ModelUnavailable, match="cannot be loaded"):
            load(folder, cache)

    def test_incomplete_weights_are_not_made_up(self, folder: Path, cache: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelUnavailable, match=r"incomplete: 1 missing, such as lm_head.weight"):
            load(folder, cache)

    def test_code_that_comes_with_a_model_is_not_run(self, folder: Path, cache: Path) -> None:
        config = folder / "config.json"
        text = config.read_text().replace('"model_type": "llama"', '"model_type": "mine"')
        config.write_text(text.replace("{", '{"auto_map": {"AutoConfig": "mine.Mine"},', 1))
        (folder / "mine.py").write_text("raise SystemExit('ran')")
        with pytest.raises(ModelUnavailable, match="cannot be loaded"):
            load(folder, cache)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_cuda_without_a_gpu(self, folder: Path, cache: Path) -> None:
        with pytest.raises(ModelUnavailable, match="torch sees no GPU"):
            load_pretrained(str(folder), cache_dir=cache, device="cuda")


def test_quiet_gives_the_applications_choice_back(folder: Path, cache: Path) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.INFO)
    try:
        load(folder, cache)
        assert theirs.get_verbosity() == logging.INFO
        assert theirs.is_progress_bar_enabled()
    finally:
        theirs.set_verbosity(before)


@pytest.mark.model
def test_the_embedded_model() -> None:
    loaded = load_pretrained("smollm2-135m", device="cpu", offline=True)
    assert loaded.fingerprint.width == 576
    assert loaded.fingerprint.weights == "sha256:c7f4fe1da94307303888ef70188e76382e7452b4ddf2c8c5109cd83ebb1d7c83"
    assert loaded.tokenizer.chat_template
