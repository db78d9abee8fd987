"""Steps of a fixed shape, recorded and replayed: torch's steps, in the same slots. A graph itself needs a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from elm_agent.models.network import Network
from elm_agent.models.recorded import RecordedStep, Recorder, cuda_graph
from elm_agent.models.slots import Slots
from elm_agent.models.step import step

FAMILIES = ("llama", "mistral", "qwen3", "gemma3_text")
LENGTHS = (9, 3, 6)


def again(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """A recorder without a GPU: it does the very same again, into the same tensor."""
    result = run()

    def replay() -> None:
        result.copy_(run())

    return replay, result


def filled(network: Network, lengths: tuple[int, ...]) -> Slots:
    slots = Slots()
    with torch.no_grad():
        rows = [network.embed(range(5 + row, 5 + row + count)) for row, count in enumerate(lengths)]
        prefix, _ = network.read(rows)
    slots.add(prefix.states(), prefix.mask_BL)
    return slots


def assert_like_torchs(network: Network, record: Recorder) -> None:
    """Rows come, grow and leave; the slots have to move on the way, and the number of rows crosses powers of two."""
    ours, plain, quick = filled(network, LENGTHS), filled(network, LENGTHS), RecordedStep(network.model, record)
    for turn in range(80):
        if turn == 5:
            more = filled(network, (4, 7))
            states = list(zip(more.keys, more.values, strict=True))
            mask_BL = torch.arange(7, device=network.device)[None] >= torch.tensor([[3], [0]], device=network.device)
            padded = [
                tuple(torch.stack([half[0, :, :7].roll(3, 1), half[1, :, :7]]) for half in pair) for pair in states
            ]
            for slots in (ours, plain):
                slots.add(padded, mask_BL)
        if turn == 9:
            for slots in (ours, plain):
                slots.keep([0, 2, 4])
        tokens_B = torch.arange(ours.rows, device=network.device) + 7 + turn
        found_BV = quick(ours, tokens_B)
        torch.testing.assert_close(found_BV, step(network.model, plain, tokens_B).to(found_BV), atol=1e-4, rtol=1e-4)
        assert ours.lengths_B.tolist() == plain.lengths_B.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_come_grow_and_leave_as_in_torchs_steps(tiny_network: Callable[[str], Network], family: str) -> None:
    assert_like_torchs(tiny_network(family), again)


def test_a_shape_is_recorded_once_while_the_slots_stay(tiny_network: Callable[[str], Network]) -> None:
    network, recorded = tiny_network("llama"), []

    def counted(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        recorded.append(run)
        return again(run)

    slots, quick = filled(network, LENGTHS), RecordedStep(network.model, counted)
    for turn in range(10):
        if turn == 4:
            slots.keep([0, 1])
        quick(slots, torch.arange(slots.rows) + turn)
    assert len(recorded) == 2  # four rows, and two


def test_other_slots_at_the_same_address_are_recorded_anew(tiny_network: Callable[[str], Network]) -> None:
    network = tiny_network("llama")
    ours, quick, tokens_B = filled(network, (3, 4)), RecordedStep(network.model, again), torch.tensor([7, 8])
    ours.widen(4)
    plain, cut = filled(network, (3, 4)), Slots()
    quick(ours, tokens_B)
    cut.lengths_B = plain.lengths_B
    for mine, halves, theirs in ((cut.keys, ours.keys, plain.keys), (cut.values, ours.values, plain.values)):
        for states, filled_states in zip(halves, theirs, strict=True):
            slots, heads, room, width = states.shape
            larger = states.view(slots // 2, heads, 2 * room, width)  # half as many slots, twice as long
            larger.zero_()
            larger[:, :, : filled_states.shape[2]] = filled_states[:2]
            mine.append(larger)
    torch.testing.assert_close(quick(cut, tokens_B), step(network.model, plain, tokens_B), atol=1e-9, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and torch sees none here")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_is_torchs_step(tiny_network: Callable[[str], Network], family: str) -> None:
    network = Network(copy.deepcopy(tiny_network(family).model).to("cuda"))  # the other is everybody's
    assert_like_torchs(network, cuda_graph)
