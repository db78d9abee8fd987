"""What may be done to a bank as a whole: opened twice and anew, looked after, packed, sealed anew, examined."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from bank_beside_model import PAST, BankBesideModel, names, seeds, step
from bank_model import NAMES
from hypothesis import strategies as st
from hypothesis.stateful import precondition

from elm_agent.errors import InputError
from elm_agent.memory.eviction import Rules
from elm_agent.memory.maintain import maintain
from elm_agent.records import MemoryState
from elm_agent.storage import upkeep
from elm_agent.storage.packs.transfer import NO_QUESTION, export_pack, import_pack
from elm_agent.storage.vault import rotation

_SOMETIMES, _SELDOM, _RARELY = 5, 15, 40  # steps between two


class WholeRules(BankBesideModel):
    @precondition(lambda self: self.rested("go_to_the_other_bank", _SOMETIMES))
    @step()
    def go_to_the_other_bank(self) -> None:
        """Two are open on one place, as those of an agent and a worker are; each has caches of its own."""
        if self.second is None:
            self.second = self.place.open(owner=False)
        self.bank = self.second if self.bank is self.owner else self.owner

    @precondition(lambda self: self.rested("reopen", _SELDOM))
    @step()
    def reopen(self) -> None:
        self.close()
        self.owner = self.bank = self.place.open()

    @precondition(lambda self: self.rested("examine_all", _RARELY))
    @step()
    def examine_all(self) -> None:
        self.examine()

    @step(name=names, keep=st.sampled_from((0, 5)))
    def count_and_prune(self, name: str, keep: int) -> None:
        of: dict[str, Any] = {"actor": "upkeep", "vault": self.bank.vault, "tell": lambda *_: None}
        list(upkeep.count_uses(self.bank.database, name, **of))
        list(upkeep.prune_outbox(self.bank.database, name, **of, keep=keep))

    @precondition(lambda self: self.rested("maintain", _SOMETIMES))
    @step(name=names, purge=st.booleans())
    def maintain(self, name: str, purge: bool) -> None:
        """What has expired is retired; with ``purge`` goes what had been retired before."""
        retired = [one for one, memory in self.model.of(name, MemoryState.RETIRED).items() if not memory.pinned]
        expired = [
            one
            for one, memory in self.model.of(name).items()
            if memory.valid_until == PAST
            if not memory.pinned and memory.state is not MemoryState.RETIRED
        ]
        report = maintain(self.bank, [name], Rules(), purge=purge, undo_days=0.0)
        assert report.total("evicted") == len(expired)
        assert report.total("purged") == (len(retired) if purge else 0)
        self.model.retire(expired)
        self.model.purge(retired if purge else ())
        self.touched.update(expired, retired)

    @precondition(lambda self: self.rested("rebuild_index", _SELDOM))
    @step(name=st.sampled_from((None, *NAMES)))
    def rebuild_index(self, name: str | None) -> None:
        assert set(self.owner.rebuild_index(name)) == set(NAMES if name is None else (name,))

    @precondition(lambda self: self.rested("pack", _SOMETIMES) and self.model.memories)
    @step(name=names, to=names, episodes=st.booleans())
    def pack(self, name: str, to: str, episodes: bool) -> None:
        """Out of one namespace, into another or the same, as candidates; what is there already is known."""
        path, active = self.place.home / "memories.pack", self.model.of(name, MemoryState.ACTIVE)
        if not active:
            with pytest.raises(InputError):
                export_pack(self.bank, name, path, episodes=episodes, actor="test")
            return
        assert export_pack(self.bank, name, path, episodes=episodes, actor="test").memories == len(active)
        new: dict[str, Any] = {}  # by id in the pack; of equal prompts the first one counts
        for memory_id, memory in active.items():
            if not self.model.same(to, memory.seed) and memory.seed not in {other.seed for other in new.values()}:
                new[memory_id] = memory
        assert import_pack(self.bank, to, path, dry_run=True, actor="test").new == len(new)
        ids = dict(import_pack(self.bank, to, path, actor="test").ids)
        path.unlink()
        assert ids.keys() == new.keys()
        for memory_id, memory in new.items():
            self.model.memories[ids[memory_id]] = dataclasses.replace(
                memory,
                namespace=to,
                question=memory.question if episodes else NO_QUESTION,
                named=memory.question,
                state=MemoryState.CANDIDATE,
                subject=None,
                job_id=None,
                pinned=False,
            )
        self.touched.update(ids.values())

    @precondition(lambda self: self.place.sealed and self.rested("rotate_data_key", _SELDOM))
    @step(name=names)
    def rotate_data_key(self, name: str) -> None:
        done = rotation.rotate_data(self.bank, name)
        assert done.finished
        assert done.left == ()

    @precondition(lambda self: self.place.sealed and self.rested("rotate_master_key", _SELDOM))
    @step(seed=seeds)
    def rotate_master_key(self, seed: int) -> None:
        self.place.add_master(seed)
        rotation.rotate_master(self.bank)
