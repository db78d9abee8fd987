"""Memories that are no soft prompts in a bank: from a setting to an answer, and whoever reads tensors on the way."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_helpers import MODEL, RECIPE, trained, unit
from safetensors.torch import load, save

from elm_agent import Settings, open_runtime
from elm_agent.adapters import PROJECTIONS, KeyValues, LowRank, Weights, from_bytes, to_bytes
from elm_agent.errors import InputError, SettingsError, StorageError, TensorCorrupt
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import EventKind, MemoryRecord, MemoryState, Recipe
from elm_agent.runtime import Runtime
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import FindingKind, examine
from elm_agent.storage.packs.transfer import export_pack, import_pack
from elm_agent.storage.queue.jobs import Lease
from elm_agent.testing.tiny import write_tiny_model

QUESTION = "What is 2 plus 3?"
LEARNING = {"steps": 1, "rollouts": 2, "max_new_tokens": 4, "virtual_tokens": 3, "lora_rank": 2}
KINDS = {"prefix": KeyValues, "lora": LowRank}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(params=KINDS)
def runtime(
    request: pytest.FixtureRequest, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """An agent whose memories are of one of the kinds; those of one are encrypted."""
    settings = Settings(
        model=folder,
        home=tmp_path / "home",
        task="text",
        max_new_tokens=6,
        learning=LEARNING | {"parameterisation": request.param},
        retrieval={"key": "kv"},
        worker={"mode": "inline"},
    )
    if request.param == "lora":
        monkeypatch.setenv("ELM_TEST_KEY", base64.b64encode(b"k" * 32).decode())
        settings = settings.changed(encryption={"key_env": "ELM_TEST_KEY"})
    with open_runtime(settings) as opened:
        yield opened


def queue(runtime: Runtime, recipe: Recipe) -> None:
    model_id = runtime.model.fingerprint.id
    runtime.bank.jobs.enqueue("default", QUESTION, task="text", model_id=model_id, recipe=recipe)
    runtime.runner.notify()  # inline: the job is done when this returns


def learned(runtime: Runtime) -> MemoryRecord:
    queue(runtime, runtime.recipe)
    (memory,) = runtime.bank.memories("default")
    return memory


def test_a_setting_makes_memories_that_answer(runtime: Runtime) -> None:
    agent = build_graph(runtime)
    assert agent.invoke({"question": QUESTION})["memory_id"] is None  # learns from it afterwards
    (memory,) = runtime.bank.memories("default")
    kind = runtime.settings.learning.parameterisation
    found = runtime.bank.prompt("default", memory.id)
    assert isinstance(found, KINDS[kind])
    assert (memory.recipe.parameterisation, memory.virtual_tokens) == (kind, 3 if kind == "prefix" else 0)
    answered = agent.invoke({"question": "What is 3 plus 3?"})
    assert answered["memory_id"] == memory.id
    assert answered["route"] in ("agreed", "memory", "zero_shot")  # both answers were there to choose from

    made = runtime.bank.events("default", memory.id, kind=EventKind.CREATED)[0].detail
    numbers = sum(tensor.numel() for tensor in found.tensors.values())
    assert (made["parameters"], made["bytes"]) == (numbers, 4 * numbers)
    assert runtime.bank.episode("default", memory.id).seconds_per_step > 0
    assert examine(runtime.bank).clean


def test_a_pack_carries_it(runtime: Runtime, tmp_path: Path) -> None:
    memory = learned(runtime)
    soft = replace(runtime.recipe, parameterisation="soft_prompt")
    queue(runtime, soft)
    export_pack(runtime.bank, "default", tmp_path / "a.elmpack", actor="tester")
    report = import_pack(runtime.bank, "other", tmp_path / "a.elmpack", new_namespace=True, actor="tester")
    assert (report.new, report.known) == (2, 0)
    for there, here in report.ids:
        assert runtime.bank.memory("other", here).recipe == runtime.bank.memory("default", there).recipe
        left, right = (runtime.bank.prompt(*of) for of in (("default", there), ("other", here)))
        assert type(left) is type(right)
        assert to_bytes(left) == to_bytes(right)
    assert import_pack(runtime.bank, "other", tmp_path / "a.elmpack", actor="tester").known == 2
    imported = dict(report.ids)[memory.id]
    event = runtime.bank.events("other", imported, kind=EventKind.IMPORTED)[0]
    assert event.detail["parameters"] > 0
    assert examine(runtime.bank).clean


def test_the_tensors_of_a_pack_are_read_by_the_library(runtime: Runtime, tmp_path: Path) -> None:
    import zipfile

    memory = learned(runtime)
    export_pack(runtime.bank, "default", tmp_path / "a.elmpack", actor="tester")
    with zipfile.ZipFile(tmp_path / "a.elmpack") as pack:
        tensors = load(pack.read("tensors.safetensors"))
    found = runtime.bank.prompt("default", memory.id)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        f"000000.{name}": tensor.shape for name, tensor in found.tensors.items()
    }
    assert all(torch.equal(tensors[f"000000.{name}"], tensor) for name, tensor in found.tensors.items())


def test_what_the_recipe_does_not_make_is_quarantined(runtime: Runtime) -> None:
    """A file under a right digest, but of another rank or length than the record says."""
    memory, bank = learned(runtime), runtime.bank
    found = bank.prompt("default", memory.id)
    other = to_bytes(
        KeyValues(found.keys_LHVD[:, :, :2].clone(), found.values_LHVD[:, :, :2].clone())
        if isinstance(found, KeyValues)
        else LowRank(
            {name: (m[:, :1] if name.endswith(".A") else m[..., :1]).clone() for name, m in found.tensors.items()},
            1.0,
        )
        if isinstance(found, LowRank)
        else b""
    )
    digest = bank.tensors.put("default", bank.vault.seal_bytes("default", other))
    with bank.database.write() as session:
        from elm_agent.storage.sql.schema import MemoryRow

        session.get_one(MemoryRow, ("default", memory.id)).tensor_digest = digest
    with pytest.raises(TensorCorrupt, match=r"expected (a prefix of 3 positions; got 2|matrices of rank 2)"):
        bank.prompt("default", memory.id)
    report = examine(bank, repair=True)
    assert FindingKind.ALTERED_TENSOR in {finding.kind for finding in report.findings}
    assert bank.memory("default", memory.id).state == MemoryState.QUARANTINED


@pytest.mark.parametrize("damaged", [{"lora_rank": 0}, {"lora_rank": "x"}, {"parameterisation": 5}])
def test_a_damaged_recipe_is_found(bank: Bank, damaged: dict[str, object]) -> None:
    from elm_agent.storage.sql.schema import MemoryRow

    taken = lease(bank, RECIPE)
    kind = {"task": "math", "model": MODEL, "recipe": RECIPE, "state": MemoryState.ACTIVE, "reason": None}
    memory = bank.publish(taken, trained(unit(1, 2, 3, 4)), **kind)  # type: ignore[arg-type]
    with bank.database.write() as session:
        row = session.get_one(MemoryRow, ("default", memory.id))
        row.recipe = row.recipe | damaged
    with pytest.raises((StorageError, TensorCorrupt), match=r"damaged|no bank keeps"):
        bank.prompt("default", memory.id)
    assert {finding.subject for finding in examine(bank).findings} == {memory.id}


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_memory_of_another_kind_than_its_recipe_is_not_published(bank: Bank) -> None:
    made = trained(unit(1, 2, 3, 4))
    prefix = KeyValues(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    for prompt, recipe in (
        (prefix, RECIPE),
        (made.prompt, replace(RECIPE, parameterisation="prefix")),
        (Weights(torch.nn.Linear(2, 2)), RECIPE),
        (SoftPrompt(torch.zeros(2, 5)), RECIPE),
    ):
        with pytest.raises(InputError, match=r"expected the recipe|has width 5"):
            bank.publish(
                lease(bank, recipe),
                replace(made, prompt=prompt),
                task="math",
                model=MODEL,
                recipe=recipe,
                state=MemoryState.ACTIVE,
                reason=None,
            )
    assert bank.memories("default") == []


def lease(bank: Bank, recipe: Recipe) -> Lease:
    bank.jobs.enqueue("default", f"{np.random.random()}", task="math", model_id=MODEL.id, recipe=recipe)
    taken = bank.jobs.claim("worker", lease_seconds=60)
    assert taken is not None
    return taken


PREFIX, LORA = Recipe(parameterisation="prefix", virtual_tokens=3), Recipe(parameterisation="lora", lora_rank=2)
STATES = {"keys": torch.ones(2, 1, 3, 4), "values": torch.ones(2, 1, 3, 4)}
MATRICES = {
    f"{name}.{half}": torch.ones((2, 2, 4) if half == "A" else (2, 4, 2)) for name in PROJECTIONS[0] for half in "AB"
}


@pytest.mark.parametrize(
    ("recipe", "tensors", "sentence"),
    [
        (PREFIX, {"prompt": torch.ones(3, 4)}, "tensors named keys, values"),
        (PREFIX, STATES | {"more": torch.ones(1)}, "tensors named keys, values"),
        (PREFIX, STATES | {"keys": torch.ones(2, 1, 2, 4)}, "same layers, heads and positions"),
        (
            PREFIX,
            {name: tensor[:, :, :2].clone() for name, tensor in STATES.items()},
            "a prefix of 3 positions; got 2",
        ),
        (PREFIX, STATES | {"keys": torch.ones(2, 1, 3)}, r"shape \(L, H, V, D\)"),
        (PREFIX, STATES | {"keys": STATES["keys"].double()}, "is float32"),
        (PREFIX, STATES | {"values": STATES["values"] * torch.nan}, "is finite"),
        (LORA, STATES, "A and B of every projection"),
        (LORA, {name: tensor for name, tensor in MATRICES.items() if "q_proj" not in name}, "A and B of every"),
        (LORA, MATRICES | {"../../etc/passwd.A": torch.ones(1, 1, 1)}, "A and B of every projection"),
        (LORA, MATRICES | {"mlp.up_proj.A": torch.ones(1, 2, 4)}, r"got \[\(1, 2\), \(2, 2\)\]"),
        (LORA, MATRICES | {"mlp.up_proj.A": torch.ones(2, 1, 4)}, r"same \(layers, rank\)"),
        (LORA, MATRICES | {"mlp.up_proj.B": torch.ones(2, 4, 1)}, r"same \(layers, rank\)"),
        (LORA, MATRICES | {"mlp.up_proj.B": torch.ones(2, 4)}, "mlp.up_proj.B has shape"),
        (LORA, MATRICES | {"mlp.up_proj.B": torch.ones(2, 4, 2).half()}, "is float32"),
        (LORA, MATRICES | {"mlp.up_proj.B": torch.full((2, 4, 2), torch.inf)}, "is finite"),
        (replace(LORA, lora_rank=3), MATRICES, "rank 3 for width 4; got rank 2 for 4"),
        (Recipe(parameterisation="full"), STATES, "no bank keeps a memory with parameterisation 'full'"),
    ],
)
def test_other_tensors_than_the_recipes_are_refused(
    recipe: Recipe, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    with pytest.raises(TensorCorrupt, match=sentence):
        from_bytes(save(tensors), recipe=recipe, virtual_tokens=recipe.positions, width=4)


def test_bytes_do_not_depend_on_the_order_of_names() -> None:
    memory, turned = LowRank(MATRICES, 1.0), LowRank(dict(reversed(MATRICES.items())), 1.0)
    assert to_bytes(memory) == to_bytes(turned)
    found = from_bytes(to_bytes(memory), recipe=LORA, virtual_tokens=0, width=4)
    assert isinstance(found, LowRank)
    assert found.scale == LORA.lora_scale == 8.0
    assert b"__metadata__" not in to_bytes(memory)
    assert to_bytes(SoftPrompt(torch.ones(2, 3))) == save({"prompt": torch.ones(2, 3)})
    with pytest.raises(TensorCorrupt, match="not a safetensors file"):
        from_bytes(b"no", recipe=LORA, virtual_tokens=0, width=4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning": {"parameterisation": "lora"}, "engine": "vllm"}, "engine 'vllm' reads embeddings alone"),
        ({"learning": {"parameterisation": "full"}}, "which no bank keeps"),
    ],
)
def test_settings_that_cannot_go_together(tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        open_runtime(home=tmp_path, **settings)


def test_a_model_that_cannot_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    fused = str(write_tiny_model(tmp_path / "phi3", architecture="phi3"))
    common = {"model": fused, "home": tmp_path / "home", "task": "text"}
    with pytest.raises(InputError, match="'phi3' has mlp"):
        open_runtime(**common, learning={"parameterisation": "lora"})
