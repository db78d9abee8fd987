"""Steps with packed weights: torch's steps, in the same slots."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from elm_agent.models import load, packed
from elm_agent.models.decoding import Decoder, Row, decode
from elm_agent.models.loading import load_pretrained
from elm_agent.models.lowrank import Adapter, joint, sizes
from elm_agent.models.network import Network, Prefix
from elm_agent.models.packed import PackedStep, packed_bytes, packed_step, why_unpacked
from elm_agent.models.prefix_cache import PrefixCache
from elm_agent.models.scoring import score
from elm_agent.models.slots import Slots
from elm_agent.models.step import step
from elm_agent.protocols import GenerationRequest
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


def adapter_of(network: Network, rank: int, seed: int, times: float = 1.0) -> Adapter:
    generator, matrices = torch.Generator().manual_seed(seed), {}
    for name, modules in network.projections.items():
        (narrow, out), layers = sizes(modules[0]), len(modules)
        matrices[f"{name}.A"] = torch.randn(layers, rank, narrow, generator=generator) * times / 4
        matrices[f"{name}.B"] = torch.randn(layers, out, rank, generator=generator) / 4
    return Adapter(matrices, scale=0.5)


def drawn_with(network: Network, adapters: list[Adapter | None]) -> list[Row]:
    """A row for each adapter, of other lengths, the last of which joins while the others are in flight."""
    decoder, rows = Decoder(network, end_ids=()), []
    for index, adapter in enumerate(adapters):
        with torch.no_grad():
            begun = network.begin(adapters_B=[adapter])
            prefix, logits_BV = network.read([network.embed([20 + index, 30, 40])], begun)
        rows.append(Row(max_new_tokens=6 + 5 * index, temperature=0.7 * (index % 2), seed=index))
        if index == len(adapters) - 1:
            for _ in range(8):  # the first row leaves
                decoder.step()
        decoder.join(prefix, logits_BV, rows[-1:])
    while decoder.rows:
        decoder.step()
    return rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_with_adapters_of_their_own_draw_the_same_tokens_with_it(
    open_model: Callable[..., PreTrainedModel], architecture: str
) -> None:
    drawn, model = [], open_model(architecture)
    for pack in (True, False):
        network = Network(model, pack=pack)
        low, other = adapter_of(network, rank=3, seed=1), adapter_of(network, rank=2, seed=2)
        drawn.append(drawn_with(network, [low, None, other, low, adapter_of(network, rank=4, seed=3)]))
        assert (network.quick_step_beside is not None) == pack
    quick, slow = drawn
    assert [row.tokens for row in quick] == [row.tokens for row in slow]
    for mine, theirs in zip(quick, slow, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    network = Network(model, pack=True)
    bare = drawn_with(network, [None] * 5)
    assert bare[1].tokens == quick[1].tokens  # one without an adapter
    assert all(bare[index].logprobs != pytest.approx(quick[index].logprobs, abs=1e-2) for index in (0, 2, 3, 4))


@pytest.mark.parametrize("times", [1e37, float("inf"), float("nan")])
def test_numbers_out_of_bounds_stay_in_their_own_rows(
    open_model: Callable[..., PreTrainedModel], times: float
) -> None:
    network = Network(open_model(), pack=True)
    wild, sound = adapter_of(network, rank=2, seed=1, times=times), adapter_of(network, rank=2, seed=2)
    beside = network.quick_step_beside
    assert beside is not None
    rows, logits = [sound, wild, None], []
    together = joint(rows)
    assert together.finite == (times == 1e37)
    if not together.finite:  # then they are read in torch's way, row by row
        decoded = drawn_with(network, rows)
        alone = drawn_with(network, [sound, sound, None])
        assert [row.tokens for row in decoded[::2]] == [row.tokens for row in alone[::2]]
        return
    for adapters in (rows, [sound, sound, None]):
        logits.append(beside(filled(network.model, (4, 4, 4)), torch.tensor([5, 6, 7]), joint(adapters)))
    torch.testing.assert_close(logits[0][::2], logits[1][::2], atol=1e-5, rtol=1e-5)
    assert not logits[0][1].isfinite().all()


def test_matrices_are_copied_when_an_adapter_comes_and_not_when_a_row_leaves(
    open_model: Callable[..., PreTrainedModel],
) -> None:
    network = Network(open_model())
    first, second = adapter_of(network, rank=2, seed=1), adapter_of(network, rank=3, seed=2)
    both = joint([first, None, second])
    assert both.seen_BR.tolist() == [[True] * 2 + [False] * 3, [False] * 5, [False] * 2 + [True] * 3]
    assert joint([first, None, second], both) is both
    left = joint([second], both)
    assert left.matrices is both.matrices
    assert left.seen_BR.tolist() == [[False] * 2 + [True] * 3]
    third = joint([second, adapter_of(network, rank=1, seed=3)], left)
    assert third.adapters[0] is second
    assert third.seen_BR.shape == (2, 4)
    name = "mlp.up_proj"
    torch.testing.assert_close(third.matrices[f"{name}.B"][:, :, :3], second.matrices[f"{name}.B"] * 0.5)


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
    assert packed_step(network, beside=True) is None


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lengths", [(1,), (5,), (9, 3, 6, 1), (4, 4)])
def test_rows_are_read_as_by_torch(
    open_model: Callable[..., PreTrainedModel], architecture: str, lengths: tuple[int, ...]
) -> None:
    quick, slow = Network(model := open_model(architecture), pack=True), Network(model)
    rows = [slow.embed(range(5 + row, 5 + row + count)) for row, count in enumerate(lengths)]
    with torch.no_grad():
        (got, got_BV), (expected, expected_BV) = quick.read_to_draw(rows), slow.read(rows)
    assert_alike(got, got_BV, expected, expected_BV)
    tokens_B1 = torch.arange(len(lengths))[:, None] + 40
    with torch.no_grad():  # what was read can be gone on from
        torch.testing.assert_close(
            quick.extend(got, tokens_B1), slow.extend(expected, tokens_B1), atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_go_on_from_what_is_known_of_how_they_begin(
    open_model: Callable[..., PreTrainedModel], architecture: str
) -> None:
    quick, slow = Network(model := open_model(architecture), pack=True), Network(model)
    template = list(range(5, 17))
    first = [quick.embed([*template, 40]), quick.embed([60, 61, *template, 40, 41])]
    quick.read_to_draw(first)
    again = [quick.embed([*template, 50, 51, 52]), quick.embed([7, 8]), quick.embed([60, 61, *template, 70])]
    known = [quick._prefix_cache.find(row) for row in again]
    assert [None if states is None else states.shape[2] for states in known] == [12, None, 14]
    for rows in (again, again[:1], again[2:]):
        with torch.no_grad():
            (got, got_BV), (expected, expected_BV) = quick.read_to_draw(rows), slow.read(rows)
        assert_alike(got, got_BV, expected, expected_BV)


def test_so_many_rows_are_read_together_as_there_is_room_for(
    open_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    own = PackedStep._read

    def watched(self: PackedStep, rows: Sequence[torch.Tensor], pasts: Sequence[torch.Tensor]) -> Any:
        lengths.append(sum(map(len, rows)))
        return own(self, rows, pasts)

    monkeypatch.setattr(PackedStep, "_read", watched)
    quick, slow = Network(model := open_model(), pack=True), Network(model)
    room = model.config.max_position_embeddings
    rows = [slow.embed([row + 3] * length) for row, length in enumerate((room // 2, room // 2 - 1, 1, 2, room, 3))]
    with torch.no_grad():
        (got, got_BV), (expected, expected_BV) = quick.read_to_draw(rows), slow.read(rows)
    assert lengths == [room - 1, 3, room, 3]
    assert_alike(got, got_BV, expected, expected_BV)


def test_a_long_row_is_read_in_pieces(
    open_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_SCORES", 200)
    lengths: list[int] = []
    own = PackedStep._read

    def watched(self: PackedStep, rows: Sequence[torch.Tensor], pasts: Sequence[torch.Tensor]) -> Any:
        lengths.append(sum(map(len, rows)))
        return own(self, rows, pasts)

    monkeypatch.setattr(PackedStep, "_read", watched)
    quick, slow = Network(model := open_model(), pack=True), Network(model)
    row = slow.embed(range(3, 43))
    with torch.no_grad():
        (got, got_BV), (expected, expected_BV) = quick.read_to_draw([row]), slow.read([row])
    assert lengths == [5] * 8
    assert_alike(got, got_BV, expected, expected_BV)


def test_a_row_out_of_bounds_is_read_alone(open_model: Callable[..., PreTrainedModel]) -> None:
    quick = Network(open_model(), pack=True)
    rows = [quick.embed([row, 30, 40, 50]) for row in range(3, 6)]
    (sound, sound_BV), wild = quick.read_to_draw(rows[::2]), rows[1].clone()
    wild[2, 5] = float("inf")
    quick._prefix_cache = PrefixCache(most_bytes=0)
    read, logits_BV = quick.read_to_draw([rows[0], wild, rows[2]])
    assert not bool(logits_BV[1].isfinite().any())
    read.select(torch.tensor([0, 2]))
    assert_alike(read, logits_BV[::2], sound, sound_BV)


def assert_alike(got: Prefix, got_BV: torch.Tensor, expected: Prefix, expected_BV: torch.Tensor) -> None:
    torch.testing.assert_close(got_BV, expected_BV, atol=2e-4, rtol=1e-4)
    assert torch.equal(got.mask_BL, expected.mask_BL)
    real_B1L1 = got.mask_BL[:, None, :, None]
    for mine, other in zip(got.states(), expected.states(), strict=True):
        for kind in range(2):
            torch.testing.assert_close(mine[kind] * real_B1L1, other[kind] * real_B1L1, atol=2e-4, rtol=1e-4)


def test_answers_are_read_with_packed_weights_and_scores_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    own = PackedStep.read

    def watched(self: PackedStep, rows: Sequence[torch.Tensor], begun: Sequence[torch.Tensor | None]) -> Any:
        read.append(len(rows))
        return own(self, rows, begun)

    monkeypatch.setattr(PackedStep, "read", watched)
    model = load(str(write_tiny_model(tmp_path, width=64)), device="cpu", offline=True)
    asked = [GenerationRequest(prompt_ids=(5, 6, 7), max_new_tokens=4) for _ in range(2)]
    score(model, (5, 6, 7), [(8, 9)])
    assert read == []
    answers = model.generate(asked)
    model.close()
    assert read == [2]
    slow = load(str(tmp_path), device="cpu", offline=True, pack=False)
    assert [one.token_ids for one in slow.generate(asked)] == [one.token_ids for one in answers]
    slow.close()
