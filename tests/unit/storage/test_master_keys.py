"""Where the master key comes from, and what is said when it is not there; never the key itself."""

import base64
import os
from pathlib import Path

import pytest

from elm_agent.errors import SettingsError
from elm_agent.storage.vault.master_keys import (
    MasterKey,
    from_environment,
    from_file,
    from_function,
    new_master_key,
    source,
    write_private,
)

SECRET = bytes(range(100, 132))
WORD = base64.b64encode(SECRET).decode()


def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", WORD)
    keys = from_environment("MY_KEY")
    assert keys.current() == MasterKey(SECRET)
    assert keys.named(keys.current().id) == MasterKey(SECRET)
    assert keys.named("mk-0000000000000000") is None


def test_the_first_of_several_keys_is_for_new_work(tmp_path: Path) -> None:
    newer, path = new_master_key(), tmp_path / "key"
    write_private(path, f"{newer}\n{WORD}\n".encode())
    keys = from_file(path)
    assert keys.current() == MasterKey(base64.b64decode(newer))
    assert keys.named(MasterKey(SECRET).id) == MasterKey(SECRET)


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, WORD.encode())
    keys = from_file(path)
    assert keys.current() == MasterKey(SECRET)
    path.write_text(other := new_master_key())
    assert keys.current() == MasterKey(base64.b64decode(other))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(WORD)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=r"can be read by others .*chmod 600") as caught:
        from_file(path).current()
    assert WORD not in str(caught.value)


def test_private_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        write_private(path, b"secret")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingsError, match="exists already"):
        write_private(path, b"other")
    assert path.read_bytes() == b"secret"


def test_functions_of_both_shapes() -> None:
    asked = []

    def by_id(key_id: str | None) -> bytes:
        asked.append(key_id)
        return SECRET

    assert from_function(lambda: SECRET).current() == MasterKey(SECRET)
    keys = from_function(by_id)
    assert keys.current() == MasterKey(SECRET)
    assert keys.named("mk-1234567890123456") is None
    assert asked == [None, "mk-1234567890123456"]


@pytest.mark.parametrize("text", ["", "   \n", "not base64 at all!", WORD[:-8], base64.b64encode(b"x" * 33).decode()])
def test_what_is_no_key_is_one_sentence_without_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MY_KEY", text)
    with pytest.raises(SettingsError, match="environment variable MY_KEY") as caught:
        from_environment("MY_KEY").current()
    assert not text.strip() or text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NOT_SET, which is not set"):
        from_environment("NOT_SET").current()
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        from_file(tmp_path / "none").current()
    (tmp_path / "binary").write_bytes(b"\xff" * 32)
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(SettingsError, match="is not text"):
        from_file(tmp_path / "binary").current()
    with pytest.raises(SettingsError, match="got 5 bytes"):
        from_function(lambda: b"short").current()
    with pytest.raises(SettingsError, match="got str"):
        from_function(lambda: "a" * 32).current()  # type: ignore[arg-type, return-value]
    with pytest.raises(SettingsError, match="takes a function"):
        from_function(SECRET)  # type: ignore[arg-type]


def test_one_source_only(tmp_path: Path) -> None:
    assert source() is None
    with pytest.raises(SettingsError, match="key_env and key_file"):
        source(key_env="A", key_file=tmp_path / "b")


def test_nothing_secret_is_shown() -> None:
    key = MasterKey(SECRET)
    shown = f"{key!r} {key} {from_function(lambda: SECRET)!r}"
    assert WORD not in shown
    assert repr(SECRET) not in shown
    assert key.id.startswith("mk-")
    assert SECRET.hex()[:16] not in key.id
