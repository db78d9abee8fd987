"""What every tensor store must do, as a pytest class; see ``elm_agent.testing.conformance``."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from elm_agent.errors import SettingsError, TensorCorrupt, TensorMissing
from elm_agent.protocols import TensorCapability, TensorStore
from elm_agent.testing.processes import StartMethod, context_of

NOWHERE = "sha256:" + "0" * 64
TEAM = "team"
STEPS = ("tensor.temporary", "tensor.durable")

Opener = Callable[[], TensorStore]
"""Opens the same store once more; a picklable function, for other processes."""


class TensorStoreSuite:
    """Judges a ``TensorStore``. Override ``store``; ``alter`` and ``opener`` where the store can do that."""

    batch = 300  # tensors of the large batch
    rounds = 25  # of each process that works beside others
    large = 300_000  # bytes of the largest tensor
    patience = 120.0  # seconds within which processes must be done
    start_method: StartMethod = "spawn"

    @pytest.fixture
    def store(self) -> TensorStore:
        raise NotImplementedError("give a fixture `store` that yields an empty TensorStore")

    def alter(self, store: TensorStore, namespace: str, digest: str, data: bytes) -> None:  # noqa: ARG002
        """Replace what is stored under ``digest`` behind the store's back."""
        pytest.skip("this store cannot be altered from outside")

    def opener(self, store: TensorStore) -> Opener:
        """How another process opens the same store; needed with ``TensorCapability.SHARED`` or ``DURABLE``."""
        raise NotImplementedError("override `opener`: this store says that other processes may use it")

    def _need(self, store: TensorStore, capability: TensorCapability) -> None:
        if capability not in store.capabilities:
            pytest.skip(f"this store is not {capability.value}")

    # --- one tensor ---------------------------------------------------------------------------------------

    def test_capabilities_are_named(self, store: TensorStore) -> None:
        assert isinstance(store.capabilities, frozenset)
        assert TensorCapability.BASE in store.capabilities <= set(TensorCapability)

    def test_what_was_put_is_got(self, store: TensorStore) -> None:
        digest = store.put(TEAM, b"weights")
        assert digest == "sha256:" + hashlib.sha256(b"weights").hexdigest()
        assert store.get(TEAM, digest) == b"weights"
        assert store.get(TEAM, digest, cached=False) == b"weights"
        assert list(store.digests(TEAM)) == [digest]
        assert store.namespaces() == [TEAM]

    @pytest.mark.parametrize(
        "data",
        [b"", b"\x00", bytes(range(256)), "ключ ‮ 鍵\n".encode(), b"\r\n\x1a"],
        ids=["empty", "zero", "every byte", "unicode", "line ends"],
    )
    def test_bytes_are_bytes(self, store: TensorStore, data: bytes) -> None:
        assert store.get(TEAM, store.put(TEAM, data)) == data

    def test_a_large_tensor(self, store: TensorStore) -> None:
        data = b"\r\n\xff" * (self.large // 3)
        assert store.get(TEAM, store.put(TEAM, data)) == data

    def test_putting_again_is_harmless(self, store: TensorStore) -> None:
        assert store.put(TEAM, b"same") == store.put(TEAM, b"same")
        assert len(list(store.digests(TEAM))) == 1

    def test_missing_is_said(self, store: TensorStore) -> None:
        for ask in (store.get, store.age):
            with pytest.raises(TensorMissing):
                ask(TEAM, NOWHERE)
        assert store.delete(TEAM, NOWHERE) is False
        assert list(store.digests(TEAM)) == []
        assert store.namespaces() == []

    @pytest.mark.parametrize(
        "digest",
        [
            "",
            "sha256:",
            "../../etc/passwd",
            "sha256:../" + "0" * 61,
            NOWHERE + "\n",
            NOWHERE.upper(),
            "md5:" + "0" * 64,
        ],
    )
    def test_a_malformed_digest_is_refused(self, store: TensorStore, digest: str) -> None:
        for ask in (store.get, store.delete, store.age):
            with pytest.raises(TensorCorrupt):
                ask(TEAM, digest)

    def test_deleted_is_gone_and_can_come_back(self, store: TensorStore) -> None:
        digest, other = store.put(TEAM, b"one"), store.put(TEAM, b"two")
        assert store.get(TEAM, digest) == b"one"
        assert store.delete(TEAM, digest) is True
        assert store.delete(TEAM, digest) is False
        with pytest.raises(TensorMissing):
            store.get(TEAM, digest)
        assert list(store.digests(TEAM)) == [other]
        assert store.get(TEAM, store.put(TEAM, b"one")) == b"one"

    def test_young_tensors_survive_a_careful_delete(self, store: TensorStore) -> None:
        digest = store.put(TEAM, b"young")
        assert 0 <= store.age(TEAM, digest) < 600
        assert store.delete(TEAM, digest, older_than_seconds=3600) is False
        assert store.get(TEAM, digest) == b"young"
        assert store.delete(TEAM, digest, older_than_seconds=-1) is True
        assert store.delete(TEAM, digest, older_than_seconds=-1) is False

    def test_a_deletion_asks_at_the_last_moment(self, store: TensorStore) -> None:
        digest = store.put(TEAM, b"wanted")
        asked: list[bool] = []

        def stays() -> bool:
            asked.append(not asked)
            return asked[-1]

        assert store.delete(TEAM, NOWHERE, unless=stays) is False
        assert asked == [], "there is nothing to ask about"
        assert store.delete(TEAM, digest, unless=stays) is False
        assert store.get(TEAM, digest) == b"wanted"
        assert store.delete(TEAM, digest, unless=stays) is True
        assert asked == [True, False]
        assert store.temporary(-1) == []

    def test_no_put_ends_while_a_deletion_asks(self, store: TensorStore) -> None:
        """Whoever stores the same bytes meanwhile finds them there afterwards."""
        digest = store.put(TEAM, b"again")
        with ThreadPoolExecutor(1) as pool:
            putting: list[Future[str]] = []

            def goes() -> bool:
                putting.append(pool.submit(store.put, TEAM, b"again"))
                with suppress(TimeoutError):
                    putting[0].result(0.5)
                return False

            assert store.delete(TEAM, digest, unless=goes) is True
            assert putting[0].result(self.patience) == digest
        assert store.get(TEAM, digest) == b"again"

    def test_altered_bytes_are_noticed_and_a_put_mends_them(self, store: TensorStore) -> None:
        digest = store.put(TEAM, b"weights")
        for damage in (b"weightz", b"weigh", b""):
            self.alter(store, TEAM, digest, damage)
            with pytest.raises(TensorCorrupt) as caught:
                store.get(TEAM, digest)
            assert "\n" not in str(caught.value)
        store.put(TEAM, b"weights")
        assert store.get(TEAM, digest) == b"weights"

    # --- steps --------------------------------------------------------------------------------------------

    def test_steps_are_observed_in_order(self, store: TensorStore) -> None:
        seen: list[tuple[str, bool]] = []

        def observe(step: str, detail: dict[str, object]) -> None:
            assert detail["bytes"] == 7
            seen.append((step, detail["digest"] in set(store.digests(TEAM))))

        store.put(TEAM, b"weights", observe)
        assert [step for step, _ in seen] == list(STEPS)
        assert seen[1][1], "durable was announced before the tensor was there"

    def test_an_interrupted_put_leaves_nothing(self, store: TensorStore) -> None:
        def interrupt(step: str, detail: dict[str, object]) -> None:  # noqa: ARG001
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.put(TEAM, b"weights", interrupt)
        assert list(store.digests(TEAM)) == []
        assert store.temporary(-1) == []
        assert store.sweep(-1) == []

    @pytest.mark.parametrize("step", STEPS)
    def test_a_process_killed_in_a_put_leaves_all_or_nothing(self, store: TensorStore, step: str) -> None:
        self._need(store, TensorCapability.DURABLE)
        kept = store.put(TEAM, b"kept")
        self._run([(_put_and_die, (self.opener(store), TEAM, b"half" * 1000, step))], exit_code=-signal.SIGKILL)
        again = self.opener(store)()
        whole = "sha256:" + hashlib.sha256(b"half" * 1000).hexdigest()
        there = set(again.digests(TEAM))
        assert kept in there
        assert there <= {kept, whole}
        assert (whole in there) or step == "tensor.temporary", "it was announced as durable"
        assert {again.get(TEAM, digest) for digest in there} <= {b"kept", b"half" * 1000}
        swept = again.temporary(-1)
        assert again.sweep(-1) == swept
        assert again.temporary(-1) == []
        assert again.get(TEAM, again.put(TEAM, b"half" * 1000)) == b"half" * 1000
        assert set(again.digests(TEAM)) == {kept, whole}

    # --- namespaces ---------------------------------------------------------------------------------------

    def test_the_same_bytes_in_two_namespaces_are_two_tensors(self, store: TensorStore) -> None:
        digest = store.put(TEAM, b"shared")
        with pytest.raises(TensorMissing):
            store.get("other", digest)
        assert store.delete("other", digest) is False
        assert store.put("other", b"shared") == digest
        assert store.namespaces() == ["other", TEAM]
        assert store.delete(TEAM, digest) is True
        assert store.get("other", digest) == b"shared"
        with pytest.raises(TensorMissing):
            store.get(TEAM, digest)
        assert list(store.digests(TEAM)) == []
        assert store.namespaces() == ["other"]

    def test_names_that_look_alike_are_apart(self, store: TensorStore) -> None:
        names = ["team", "Team", "TEAM", "tEaM", "t.eam", "t-eam", "t_eam", "ab", "a" * 100, "A" * 100, "0"]
        stored = {name: store.put(name, name.encode()) for name in names}
        assert store.namespaces() == sorted(names)
        for name, digest in stored.items():
            assert list(store.digests(name)) == [digest]
            assert store.get(name, digest) == name.encode()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "a\0", "a\n", "é", "a" * 101, "‮a", "+a"])
    def test_a_name_that_is_no_namespace_is_refused(self, store: TensorStore, name: str) -> None:
        for ask in (store.get, store.delete, store.age):
            with pytest.raises(SettingsError):
                ask(name, NOWHERE)
        with pytest.raises(SettingsError):
            store.put(name, b"data")
        with pytest.raises(SettingsError):
            list(store.digests(name))
        assert store.namespaces() == []

    # --- many at once -------------------------------------------------------------------------------------

    def test_a_large_batch(self, store: TensorStore) -> None:
        payloads = [f"tensor {n}".encode() for n in range(self.batch)]
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(lambda data: store.put(TEAM, data), payloads))
        assert sorted(store.digests(TEAM)) == sorted(digests)
        assert store.get(TEAM, digests[-1]) == payloads[-1]

    def test_threads(self, store: TensorStore) -> None:
        payloads = [bytes([n % 10]) * 1000 for n in range(80)]
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(lambda data: store.put(TEAM, data), payloads))
            assert list(pool.map(lambda digest: store.get(TEAM, digest), digests)) == payloads
        assert sorted(store.digests(TEAM)) == sorted(set(digests))

    def test_threads_that_delete_what_others_put(self, store: TensorStore) -> None:
        """Careful deletions of what is young remove nothing, whoever puts and gets meanwhile."""
        payloads = [bytes([n]) * 500 for n in range(4)]

        def work(n: int) -> bytes:
            digest = store.put(TEAM, payloads[n % 4])
            assert store.delete(TEAM, digest, older_than_seconds=3600) is False
            return store.get(TEAM, digest)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(40))) == [payloads[n % 4] for n in range(40)]

    def test_processes(self, store: TensorStore) -> None:
        """Several processes put, get and delete the same few digests: a get gives all the bytes or says missing."""
        self._need(store, TensorCapability.SHARED)
        opener = self.opener(store)
        self._run([(_put_get_delete, (opener, TEAM, turn, self.rounds)) for turn in range(3)])
        for digest in store.digests(TEAM):
            assert len(store.get(TEAM, digest)) == 2000
        assert store.temporary(-1) == []

    def _run(self, work: list[tuple[Callable[..., None], tuple[object, ...]]], exit_code: int = 0) -> None:
        context = context_of(self.start_method)
        processes = [context.Process(target=function, args=args) for function, args in work]
        for process in processes:
            process.start()
        for process in processes:
            process.join(self.patience)
            if process.is_alive():
                process.kill()
                process.join()
                pytest.fail(f"a process was not done after {self.patience:g} s")
        assert [process.exitcode for process in processes] == [exit_code] * len(processes)


def _put_and_die(opener: Opener, namespace: str, data: bytes, at: str) -> None:
    def observe(step: str, detail: dict[str, object]) -> None:  # noqa: ARG001
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    opener().put(namespace, data, observe)


def _put_get_delete(opener: Opener, namespace: str, turn: int, rounds: int) -> None:
    store = opener()
    for n in range(rounds):
        data = bytes([(n + turn) % 3]) * 2000
        digest = store.put(namespace, data)
        with suppress(TensorMissing):  # another process has deleted it meanwhile
            assert store.get(namespace, digest) == data
        if n % 2:
            store.delete(namespace, digest)
        else:
            assert store.delete(namespace, digest, older_than_seconds=3600) is False
