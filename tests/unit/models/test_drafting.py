"""Guesses from earlier completions, and rows that check them: the same tokens in fewer passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from elm_agent.errors import ModelError
from elm_agent.models import decoding
from elm_agent.models.decoding import Row
from elm_agent.models.drafting import Drafts
from elm_agent.models.network import Network
from elm_agent.models.slots import Slots
from elm_agent.models.step import step


def drafts_of(*completions: list[int]) -> Drafts:
    drafts = Drafts()
    for tokens in completions:
        drafts.add(tokens)
    return drafts


def test_a_guess_goes_on_as_most_completions_did() -> None:
    drafts = drafts_of([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4])
    assert drafts.propose([], 3) == [1, 2, 3]
    assert drafts.propose([], 9) == [1, 2, 3, 4]  # two of three
    assert drafts.propose([1, 2], 2) == [3, 4]
    assert drafts.propose([4], 2) == []  # nothing ever followed


def test_the_longest_ending_that_was_seen_decides() -> None:
    drafts = drafts_of([1, 7, 8], [2, 7, 9], [2, 7, 9])
    assert drafts.propose([1, 7], 1) == [8]
    assert drafts.propose([5, 7], 1) == [9]
    assert drafts.propose([2, 7, 9, 1, 7], 1) == [8]


def test_an_unlikely_guess_is_not_made() -> None:
    assert drafts_of([1], [2], [3]).propose([], 3) == []
    assert drafts_of([1, 4], [1, 5], [2]).propose([], 3) == [1]  # two of three, then half of that
    assert Drafts().propose([1, 2], 3) == []


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("window", [None, 4])
def test_several_tokens_of_a_row_at_once_are_what_they_are_one_by_one(
    architecture: str, window: int | None, tiny_network: object
) -> None:
    network: Network = tiny_network(architecture)  # type: ignore[operator]
    with torch.no_grad(), windowed(network, window):
        prefix, _ = network.read([network.embed(ids) for ids in ([65, 66, 67, 68, 69, 70], [70], [80, 81])])
        together, alone = Slots(), Slots()
        together.add(prefix.states(), prefix.mask_BL)
        alone.add(prefix.states(), prefix.mask_BL)
        first = step(network.model, together, torch.tensor([1, 2, 3, 10, 20, 21]), [3, 1, 2])
        expected = {place: {} for place in range(3)}
        for place, tokens in enumerate(([1, 10, 20], [2, 10, 21], [3, 10, 21])):
            expected[place] = step(network.model, alone, torch.tensor(tokens))
        for row, places, at in ((0, 3, 0), (1, 1, 3), (2, 2, 4)):
            for place in range(places):
                torch.testing.assert_close(first[at + place], expected[place][row])
        # What was guessed wrong is forgotten, and others take its place.
        together.forget([2, 0, 1])
        alone.forget([2, 2, 2])
        tokens = torch.tensor([50, 60, 70])
        torch.testing.assert_close(step(network.model, together, tokens), step(network.model, alone, tokens))
        assert together.lengths_B.tolist() == [8, 3, 4]


@contextmanager
def windowed(network: Network, window: int | None) -> Iterator[None]:
    """The network with such a sliding window in the layers that have one."""
    attentions = [layer.self_attn for layer in network.model.model.layers]
    layers = [attention for attention in attentions if getattr(attention, "sliding_window", None)]
    before = [layer.sliding_window for layer in layers]
    try:
        for layer in layers:
            layer.sliding_window = window or layer.sliding_window
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.sliding_window = value


def rows_of(seeds: range, drafts: Drafts | None = None) -> list[Row]:
    """Sharp enough that completions resemble each other, and of different lengths."""
    return [Row(max_new_tokens=9 + seed % 4, temperature=0.3, seed=seed, drafts=drafts) for seed in seeds]


def drawn(network: Network, rows: list[Row], patch: pytest.MonkeyPatch) -> int:
    """Draw the rows to their ends after a text; how often the network was run."""
    passes = 0

    def counted(*args: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return step(*args)

    with torch.no_grad(), patch.context() as inside:
        inside.setattr(decoding, "step", counted)
        prefix, logits_1V = network.read([network.embed([65, 66, 67, 68])])
        decoding.decode(network, prefix, logits_1V, rows, [70, 71, 72])
    return passes


def kept(rows: list[Row]) -> list[tuple[list[int], bool]]:
    return [(row.tokens, row.finished) for row in rows]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_rows_with_drafts_draw_the_same_tokens_in_fewer_passes(
    architecture: str, tiny_network: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Network = tiny_network(architecture)  # type: ignore[operator]
    earlier, plain = rows_of(range(10, 16)), rows_of(range(6))
    drawn(network, earlier, monkeypatch)
    passes = drawn(network, plain, monkeypatch)
    right = drafts_of(*(row.tokens for row in plain))
    for drafts in (right, drafts_of(*(row.tokens for row in earlier)), Drafts()):
        rows = rows_of(range(6), drafts)
        needed = drawn(network, rows, monkeypatch)
        assert kept(rows) == kept(plain)
        for row, other in zip(rows, plain, strict=True):
            assert row.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            assert row.certainties == pytest.approx(other.certainties, abs=1e-6)
        assert needed < passes if drafts is right else needed <= passes


def test_a_row_of_which_everything_is_known_needs_a_quarter_of_the_passes(
    tiny_network: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Network = tiny_network("llama")  # type: ignore[operator]
    plain = Row(max_new_tokens=13, seed=1)
    assert drawn(network, [plain], monkeypatch) == 12
    row = Row(max_new_tokens=13, seed=1, drafts=Certain(plain.tokens))
    assert drawn(network, [row], monkeypatch) == 3  # the first token needs none, and each pass gives four
    assert row.tokens == plain.tokens


def test_guesses_that_are_wrong_cost_no_pass_and_change_nothing(
    tiny_network: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Network = tiny_network("llama")  # type: ignore[operator]
    plain, rows = rows_of(range(4)), rows_of(range(4))
    passes = drawn(network, plain, monkeypatch)
    for row in rows:
        row.drafts = Certain([200] * 20)
    assert drawn(network, rows, monkeypatch) == passes
    assert kept(rows) == kept(plain)


def test_rows_with_and_without_drafts_come_and_go_beside_each_other(tiny_network: object) -> None:
    network: Network = tiny_network("llama")  # type: ignore[operator]
    alone = rows_of(range(8))
    patch = pytest.MonkeyPatch()
    drawn(network, alone, patch)
    rows = rows_of(range(8))
    for row, other in list(zip(rows, alone, strict=True))[::2]:
        row.drafts = Certain(other.tokens)
    decoder = decoding.Decoder(network, [70, 71, 72])
    with torch.no_grad():
        for row in rows:  # one more at every step
            prefix, logits_1V = network.read([network.embed([65, 66, 67, 68])])
            decoder.join(prefix, logits_1V, [row])
            decoder.step()
        while decoder.rows:
            decoder.step()
    assert kept(rows) == kept(alone)


class Certain(Drafts):
    """Guesses that these are the tokens."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.tokens = tokens

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        return self.tokens[len(tokens) :][: max(most, 0)]


def test_where_rows_read_one_token_at_a_time_drafts_are_refused(tiny_network: object) -> None:
    network: Network = tiny_network("gpt2")  # type: ignore[operator]
    row = Row(max_new_tokens=9, drafts=Certain([200] * 9))
    with pytest.raises(ModelError, match=r"'gpt2'.*leave them out"):
        drawn(network, [row], pytest.MonkeyPatch())
