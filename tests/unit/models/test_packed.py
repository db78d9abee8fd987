"""Steps with packed weights: torch's steps, in the same slots."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from elm_agent.models import packed
from elm_agent.models.decoding import Row, decode
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.packed import PackedStep, packed_bytes, packed_step, why_unpacked
from elm_agent.models.slots import Slots
from elm_agent.models.step import step
from elm_agent.testing.tiny import write_tiny_model

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS = (9, 3, 6, 1)


@pytest.fixture(scope="module")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PreTrainedModel]:
    """A tiny float32 model with heads 16 wide; attributes of its configuration may be set."""

    def make(architecture: str = "llama", dtype: str = "float32", **config: object) -> PreTrainedModel:
        folder = write_tiny_model(
            tmp_path_factory.mktemp(architecture), architecture=architecture, width=64, context_length=128
        )
        model = load_pretrained(str(folder), device="cpu", dtype=dtype, offline=True).model
        for name, value in config.items():
            setattr(model.config, name, value)
        if architecture == "mistral" and "sliding_window" not in config:
            model.config.sliding_window = None
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight", "bias")):  # made as ones and zeros
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(len(name))
                    parameter.data += torch.randn_like(parameter) / 4
        return model

    return make


def filled(model: PreTrainedModel, lengths: tuple[int, ...]) -> Slots:
    network, slots = Network(model), Slots()
    with torch.no_grad():
        prefix, _ = network.read(
            [network.embed(range(5 + row, 5 + row + count)) for row, count in enumerate(lengths)]
        )
    slots.add(prefix.states(), prefix.mask_BL)
    return slots


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_come_grow_and_leave_as_in_torchs_steps(
    open_model: Callable[..., PreTrainedModel], architecture: str
) -> None:
    model = open_model(architecture)
    assert why_unpacked(model) is None
    quick, ours, theirs = PackedStep(model), filled(model, LENGTHS), filled(model, LENGTHS)
    for count in range(90):  # past the room that was made at first
        if count == 20:
            for slots in (ours, theirs):
                slots.keep([0, 2])
        if count == 40:
            for slots in (ours, theirs):
                more = filled(model, (7,))
                states = [(k[:1, :, :7], v[:1, :, :7]) for k, v in zip(more.keys, more.values, strict=True)]
                slots.add(states, torch.ones(1, 7, dtype=torch.bool))
        tokens_B = (torch.arange(ours.rows) * 31 + count * 7) % 256
        got_BV, expected_BV = quick(ours, tokens_B), step(model, theirs, tokens_B)
        assert got_BV.dtype == torch.float32
        torch.testing.assert_close(got_BV, expected_BV, atol=2e-4, rtol=1e-4)
        assert ours.lengths_B.tolist() == theirs.lengths_B.tolist()
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        for row, length in enumerate(ours.lengths_B.tolist()):
            torch.testing.assert_close(mine[row, :, :length], other[row, :, :length], atol=2e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_the_rows_beside_it(open_model: Callable[..., PreTrainedModel]) -> None:
    quick = PackedStep(model := open_model())
    together, alone = quick(filled(model, LENGTHS), torch.tensor([8, 9, 10, 11])), []
    for row in range(len(LENGTHS)):
        slots = filled(model, LENGTHS)
        slots.keep([row])
        alone.append(quick(slots, torch.tensor([8 + row])))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_decoder_draws_the_same_tokens_with_it(open_model: Callable[..., PreTrainedModel]) -> None:
    drawn = []
    for pack in (True, False):
        network = Network(open_model("qwen3"), pack=pack)
        assert (network.quick_step is not None) == pack
        rows = [Row(max_new_tokens=40, temperature=0.7 * (seed % 2), seed=seed) for seed in range(4)]
        with torch.no_grad():
            prefix, logits_BV = network.read([network.embed([20 + row, 30, 40]) for row in range(4)])
        decode(network, prefix, logits_BV, rows, end_ids=())
        drawn.append(rows)
    quick, slow = drawn
    assert [row.tokens for row in quick] == [row.tokens for row in slow]
    for mine, other in zip(quick, slow, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"architecture": "gpt2"}, "'gpt2'"),
        ({"architecture": "gemma3_text"}, "'gemma3_text'"),
        ({"architecture": "mistral", "sliding_window": 16}, "window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_what_cannot_be_packed_says_why(
    open_model: Callable[..., PreTrainedModel], model: dict[str, str], why: str
) -> None:
    network = open_model(**model)
    assert why in str(why_unpacked(network))
    assert packed_step(network) is None


def test_narrow_heads_and_a_lack_of_memory_leave_the_weights_as_they_are(
    open_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    narrow = load_pretrained(str(write_tiny_model(tmp_path)), device="cpu", dtype="float32", offline=True).model
    assert "8 wide" in str(why_unpacked(narrow))
    model = open_model()
    monkeypatch.setattr(packed, "spare_bytes", lambda _device: 2 * packed_bytes(model) - 1)
    assert "are free" in str(why_unpacked(model))
    monkeypatch.setattr(packed, "spare_bytes", lambda _device: 2 * packed_bytes(model))
    assert why_unpacked(model) is None


def test_a_failing_step_is_raised(open_model: Callable[..., PreTrainedModel]) -> None:
    model = open_model()
    quick, slots = PackedStep(model), filled(model, (3,))
    slots.grow(200)  # room, but no rotations
    slots.lengths_B = torch.tensor([150])
    with pytest.raises(RuntimeError, match="GroupQueryAttention"):
        quick(slots, torch.tensor([1]))


def test_the_engine_loads_nothing_of_it_before_it_is_wanted() -> None:
    script = "import sys, elm_agent.models.engine; print([n for n in ('onnx', 'onnxruntime') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
