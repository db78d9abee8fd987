"""Layers that are computed twice: the same numbers and the same gradient, bit by bit, from less memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from elm_agent.models import sparing
from elm_agent.models.lowrank import Adapter, sizes
from elm_agent.models.network import Network

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")
ROWS = [[3, 4, 5, 6], [3, 4, 7, 9], [8, 9, 10, 11]]


def pulled(network: Network, *, sparing: bool, adapter: Adapter | None = None) -> tuple[list[torch.Tensor], int]:
    """The log-probabilities and the gradients of embeddings and matrices; numbers that the pass kept for them."""
    embeds_TE = network.embed(range(40, 52)).clone().requires_grad_(True)
    prefix, _ = network.read([embeds_TE], network.begin(adapters_B=[adapter]))
    shared, roots = prefix.leaf()
    tokens_BT, kept = torch.tensor(ROWS), 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with network.sparing() if sparing else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            chosen_BT = network.logprobs(shared, 20, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), 0.7)
        again_BT = network.logprobs(shared, 20, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), 0.7)
        torch.autograd.backward((chosen_BT * torch.arange(1, 5)).sum() + again_BT.sum())
    assert shared.mask_BL.shape[1] == shared.states()[0][0].shape[2] == 12
    torch.autograd.backward([root for root, _ in roots], [leaf.grad for _, leaf in roots])  # type: ignore[misc]
    learnt = [embeds_TE, *(adapter.matrices.values() if adapter else ())]
    return [chosen_BT.detach(), *(tensor.grad for tensor in learnt if tensor.grad is not None)], kept


def adapter_of(network: Network) -> Adapter:
    torch.manual_seed(0)
    matrices = {}
    for name, modules in network.projections.items():
        narrow, out = sizes(modules[0])
        matrices[f"{name}.A"] = torch.randn(len(modules), 2, narrow, dtype=network.dtype).requires_grad_(True)
        matrices[f"{name}.B"] = torch.randn(len(modules), out, 2, dtype=network.dtype).requires_grad_(True)
    return Adapter(matrices, 0.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("trees", [True, False])
def test_the_gradient_is_the_same_and_less_is_kept(
    tiny_network: Callable[[str], Network], family: str, low_rank: bool, trees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(family)
    monkeypatch.setattr(Network, "reads_trees", lambda *_: trees)
    plain, kept = pulled(network, sparing=False, adapter=adapter_of(network) if low_rank else None)
    spared, less = pulled(network, sparing=True, adapter=adapter_of(network) if low_rank else None)
    assert len(plain) == (2 + 14 if low_rank else 2)
    for one, other in zip(plain, spared, strict=True):
        assert torch.equal(one, other)
    assert less < kept / 3
    assert not any("forward" in vars(layer) for layer in network.model.model.layers)


def test_without_a_gradient_nothing_is_computed_twice(tiny_network: Callable[[str], Network]) -> None:
    network = tiny_network("llama")
    with torch.no_grad(), network.sparing():
        prefix, _ = network.read([network.embed(range(40, 52))])
        with network._recomputed(prefix):
            assert "forward" not in vars(network.model.model.layers[0])


def test_another_thread_keeps_what_it_would_keep_without(
    tiny_network: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, threads = tiny_network("llama"), []
    plain = sparing.checkpoint

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return plain(*arguments, **options)

    monkeypatch.setattr(sparing, "checkpoint", noted)
    prefix, _ = network.read([network.embed([1, 2, 3])])
    before = [keys.shape for keys, _ in prefix.states()]
    with ThreadPoolExecutor(1) as other, sparing.recomputed(network.model.model.layers, prefix.cache, nullcontext):
        read, _ = other.submit(network.read, [network.embed([4, 5])]).result(timeout=60)
        assert not threads
        network.read([network.embed([4, 5])])
    assert set(threads) == {threading.current_thread()}
    assert {keys.shape[2] for keys, _ in read.states()} == {2}
    assert [keys.shape for keys, _ in prefix.states()] == before


@pytest.mark.parametrize(("family", "gated"), [("llama", 64), ("gpt2", 0)])
def test_gates_are_not_kept_and_the_gradient_is_the_same(
    tiny_network: Callable[[str], Network], family: str, gated: int
) -> None:
    network = tiny_network(family)
    gradients: list[torch.Tensor] = []
    kept: list[int] = []

    def pull(keeping: AbstractContextManager[None]) -> torch.Tensor:
        embeds_TE = network.embed(range(40, 52)).clone().requires_grad_(True)
        with keeping:
            _, logits_1V = network.read([embeds_TE])
        logits_1V[0, 7].backward()
        assert embeds_TE.grad is not None
        return embeds_TE.grad

    for hooks in (_counted, sparing.without_gates):
        noted: list[torch.Tensor] = []
        gradients.append(pull(hooks(noted.append)))
        kept.append(sum({one.data_ptr(): one.numel() for one in noted}.values()))
    assert torch.equal(*gradients)
    assert kept[0] - kept[1] == 12 * gated * network.model.config.num_hidden_layers


def _counted(note: Callable[[torch.Tensor], None]) -> AbstractContextManager[None]:
    def keep(tensor: torch.Tensor) -> torch.Tensor:
        note(tensor := tensor.detach())
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def test_what_was_kept_goes_with_the_pass(tiny_network: Callable[[str], Network]) -> None:
    network = tiny_network("llama")
    kept: list[weakref.ref[torch.Tensor]] = []
    embeds_TE = network.embed(range(40, 52)).clone().requires_grad_(True)
    gc.disable()  # a cycle would wait for it
    try:
        with sparing.without_gates(lambda tensor: kept.append(weakref.ref(tensor))):
            result = network.read([embeds_TE])
        assert any(one() is not None for one in kept)
        del result
        weights = {weight.data_ptr() for weight in network.model.parameters()} | {embeds_TE.data_ptr()}
        left = [one() for one in kept]
        assert all(one is None or one.data_ptr() in weights for one in left)
    finally:
        gc.enable()
