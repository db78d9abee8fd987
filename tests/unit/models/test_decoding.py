"""Drawing tokens: pure functions by hand, and the batched loop against one row at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from elm_agent.models.decoding import Decoder, Row, decode, pick_tokens, token_scores
from elm_agent.models.network import Network, left_pad, positions_of
from elm_agent.models.slots import Slots


def test_inverse_cdf_picks_the_token_whose_interval_holds_the_number() -> None:
    logits_BV = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(5, 3)
    uniforms_B = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999999], dtype=torch.float64)
    assert pick_tokens(logits_BV, torch.ones(5), uniforms_B).tolist() == [0, 0, 1, 1, 2]


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    logits_BV = torch.log(torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.4, 0.6]]))
    uniforms_B = torch.full((3,), 0.35, dtype=torch.float64)
    # Squared odds at temperature 0.5: 0.16 / 0.52 = 0.31, so 0.35 now falls on the second token.
    assert pick_tokens(logits_BV, torch.tensor([1.0, 0.5, 0.0]), uniforms_B).tolist() == [0, 1, 1]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits_BV = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]).expand(1000, 4)
    draws = pick_tokens(logits_BV, torch.ones(1000), torch.arange(1000, dtype=torch.float64) / 1000)
    assert set(draws.tolist()) == {0, 2}


def test_rows_draw_the_same_whoever_else_draws() -> None:
    torch.manual_seed(0)
    logits_BV, uniforms_B = torch.randn(9, 60_000) * 3, torch.rand(9, dtype=torch.float64)
    temperatures_B = torch.tensor([0.0, 0.5, 1.0] * 3)
    alone = [
        int(pick_tokens(logits_BV[row : row + 1], temperatures_B[row : row + 1], uniforms_B[row : row + 1]))
        for row in range(9)
    ]
    assert pick_tokens(logits_BV, temperatures_B, uniforms_B).tolist() == alone
    assert len(set(alone)) == 9


def test_scores_by_hand() -> None:
    logits_BV = torch.log(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]]))
    logprobs_B, certainty_B = token_scores(logits_BV, torch.tensor([2, 0]))
    assert logprobs_B.tolist() == pytest.approx([math.log(0.25), math.log(0.7)])
    # KL(uniform || uniform) = 0; else mean of log(0.25 / p).
    skewed = (math.log(0.25 / 0.7) + 3 * math.log(0.25 / 0.1)) / 4
    assert certainty_B.tolist() == pytest.approx([0.0, skewed], abs=1e-6)


def test_left_padding_puts_pads_first_and_counts_positions_from_the_first_real_token() -> None:
    embeds_BLE, mask_BL = left_pad([torch.ones(1, 2), torch.ones(3, 2)])
    assert mask_BL.tolist() == [[False, False, True], [True, True, True]]
    assert embeds_BLE[0].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert positions_of(mask_BL).tolist() == [[0, 0, 0], [0, 1, 2]]


def one_by_one(network: Network, embeds_TE: torch.Tensor, row: Row, ends: set[int]) -> list[int]:
    """The obvious way: a full forward pass over everything for each new token, no cache, no batch."""
    tokens: list[int] = []
    uniforms = row.uniforms()
    while len(tokens) < row.max_new_tokens and not (tokens and tokens[-1] in ends):
        everything = torch.cat([embeds_TE, network.embed(tokens)]) if tokens else embeds_TE
        logits = network.model(inputs_embeds=everything[None]).logits[:, -1].double()
        temperature = torch.tensor([row.temperature])
        draw = torch.tensor([uniforms[len(tokens)]], dtype=torch.float64)
        tokens.append(int(pick_tokens(logits, temperature, draw)))
    return tokens


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma3_text"])
def test_rows_of_a_batch_are_what_they_would_be_alone(architecture: str, tiny_network: object) -> None:
    network: Network = tiny_network(architecture)  # type: ignore[operator]
    torch.manual_seed(0)
    texts = [network.embed([65, 66, 67, 68]), network.embed([70]), network.embed(list(range(40, 60)))]
    texts[1] = torch.cat([torch.randn(6, network.width, dtype=network.dtype), texts[1]])  # a soft prompt before it
    rows = [
        Row(max_new_tokens=9),
        Row(max_new_tokens=12, temperature=1.0, seed=4),
        Row(max_new_tokens=3, temperature=0.7, seed=5),
    ]
    ends = {3, 70, 71, 72, 100, 101}
    with torch.no_grad():
        prefix, logits_BV = network.read(texts)
        decode(network, prefix, logits_BV, rows, sorted(ends))
        for row, text in zip(rows, texts, strict=True):
            assert row.tokens == one_by_one(network, text, row, ends)
            assert row.finished == (row.tokens[-1] in ends)
            assert len(row.logprobs) == len(row.certainties) == len(row.tokens)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma3_text"])
def test_rows_that_have_drawn_the_same_are_one_row_until_they_part(architecture: str, tiny_network: object) -> None:
    network: Network = tiny_network(architecture)  # type: ignore[operator]
    ends = {3, 70, 71, 72, 100, 101}
    start, other = network.embed([65, 66, 67, 68]), network.embed([70, 80])

    def rows() -> list[Row]:
        first, *others = [Row(max_new_tokens=limit) for limit in (4, 9, 9)]  # who leaves first began the place
        return [first, *(Row(max_new_tokens=9, temperature=0.2, seed=seed) for seed in range(6)), *others]

    together, late = rows(), rows()[1:4]
    decoder = Decoder(network, sorted(ends))
    before, widest = decoder._flight.step, 0

    def stepped(pieces: Sequence[Sequence[int]], wrong: Sequence[int]) -> torch.Tensor:
        nonlocal widest
        going = {id(row): tuple(row.tokens) for row in decoder.rows}
        begun = {key: key in {id(row) for row in late} for key in going}
        assert len(pieces) == len({(begun[key], tokens) for key, tokens in going.items()})
        widest = max(widest, len(going) - len(pieces))
        return before(pieces, wrong)

    decoder._flight.step = stepped  # type: ignore[method-assign]
    with torch.no_grad():
        prefix, logits_1V = network.read([start])
        decoder.join(prefix, logits_1V, together)
        decoder.step()
        decoder.step()
        if decoder.open:  # others begin elsewhere
            decoder.join(*network.read([other]), late)
        while decoder.rows:
            decoder.step()
        assert prefix.mask_BL.shape[1] == prefix.states()[0][0].shape[2] == 4  # as it was
        assert widest >= 3
        for text, group in ((start, together), (other, late if late[0].tokens else [])):
            for row, alone in zip(group, rows() if group is together else rows()[1:4], strict=False):
                decode(network, *network.read([text]), [alone], sorted(ends))
                assert (row.tokens, row.finished) == (alone.tokens, alone.finished)
                assert row.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
                assert row.certainties == pytest.approx(alone.certainties, abs=1e-5)


def test_where_a_row_more_costs_nothing_each_has_its_place(tiny_network: object) -> None:
    network: Network = tiny_network("llama")  # type: ignore[operator]
    decoder = Decoder(network, ())
    decoder._sharing = False
    with torch.no_grad():
        decoder.join(*network.read([network.embed([65, 66])]), [Row(max_new_tokens=3) for _ in range(4)])
        decoder.step()
    assert decoder._places == 4


def test_slots_are_copied_and_moved_in_any_order() -> None:
    """Every choice of at most four out of three rows, against plain indexing."""
    torch.manual_seed(0)
    states, mask_BL = torch.randn(3, 2, 5, 4), torch.ones(3, 5, dtype=torch.bool)
    mask_BL[1, :2] = False
    for count in range(5):
        for rows in itertools.product(range(3), repeat=count):
            slots = Slots()
            slots.add([(states, -states)], mask_BL)
            before, lengths_B = slots.keys[0].clone(), slots.lengths_B.clone()
            slots.keep(rows)
            assert slots.lengths_B.tolist() == lengths_B[list(rows)].tolist()
            assert torch.equal(slots.keys[0][:count], before[list(rows)])
            assert torch.equal(slots.values[0][:count], -before[list(rows)])
            assert slots.keys[0][count:].abs().sum() == 0


def test_what_a_row_leaves_in_its_slot_does_not_reach_the_row_that_comes_there() -> None:
    slots, mask_BL = Slots(), torch.ones(3, 5, dtype=torch.bool)
    mask_BL[2, :3] = False
    states = torch.arange(3.0)[:, None, None, None].expand(3, 2, 5, 4).clone()
    states[1] = math.nan
    slots.add([(states, -states)], mask_BL)
    slots.keep([0, 2])
    for sign, kept in ((1, slots.keys[0]), (-1, slots.values[0])):
        assert kept[0, :, :5].tolist() == (sign * states[0]).tolist()
        assert kept[1, :, :2].tolist() == (sign * states[2, :, 3:]).tolist()
        assert kept[1, :, 2:].abs().sum() == 0  # masked, and 0 times NaN is NaN
        assert kept[2].abs().sum() == 0
    assert slots.lengths_B.tolist() == [5, 2]


def test_slots_have_room_for_what_rows_may_draw_and_no_more() -> None:
    slots, states, mask_BL = Slots(), torch.ones(2, 2, 70, 4), torch.ones(2, 70, dtype=torch.bool)
    slots.add([(states, states)], mask_BL, most=80)
    assert slots.keys[0].shape == (2, 2, 80, 4)
    slots.add([(states, states)], mask_BL, most=1000)  # a longer one makes room by and by
    slots.lengths_B[:] = 79
    assert slots.grow() == 80
    assert slots.keys[0].shape == (4, 2, 80, 4)
    slots.lengths_B[3] = 80
    assert slots.grow() == 81
    assert slots.keys[0].shape == slots.values[0].shape == (4, 2, 145, 4)
    assert slots.keys[0][3, :, :70].sum() == 70 * 2 * 4
    slots.lengths_B[0] = 999
    assert slots.grow() == 1000
    assert slots.keys[0].shape[2] == 1000
    few = Slots()
    few.add([(states[:1], states[:1])], mask_BL[:1], most=80, slots=3)  # two more may part from it
    assert few.keys[0].shape == (3, 2, 80, 4)
    assert few.rows == 1
