"""What is particular to tensors in remote file systems; the promises of any store are in tests/conformance."""

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, learner, unit
from s3 import S3Server

from elm_agent import Settings
from elm_agent.errors import SettingsError, StorageError, TensorMissing
from elm_agent.runtime import open_tensors
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.tensors.urls import check_options, local_folder, redacted


@pytest.fixture
def url() -> str:
    return f"memory://{secrets.token_hex(6)}"


def cached(url: str, folder: Path) -> FsspecTensors:
    return FsspecTensors(url, cache=TensorCache(folder, max_bytes=1 << 20, max_age_seconds=3600))


# --- the cache before the store ---------------------------------------------------------------------------


def test_a_second_get_needs_no_server_and_an_audit_asks_it(url: str, tmp_path: Path) -> None:
    store, other = cached(url, tmp_path), FsspecTensors(url)
    digest = store.put("Team", b"weights")
    assert store.get("Team", digest) == b"weights"
    assert other.delete("Team", digest)
    assert store.get("Team", digest) == b"weights", "from the cache of this machine"
    with pytest.raises(TensorMissing):
        store.get("Team", digest, cached=False)
    assert store.forget("Team", digest) is True
    assert store.forget("Team", digest) is False
    with pytest.raises(TensorMissing):
        store.get("Team", digest)


def test_delete_takes_the_cached_copy_with_it(url: str, tmp_path: Path) -> None:
    store = cached(url, tmp_path)
    digest = store.put("Team", b"weights")
    store.get("Team", digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] != []
    assert store.delete("Team", digest) is True
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.put("Team", b"weights")
    store.get("Team", digest)
    assert FsspecTensors(url).delete("Team", digest) is True
    assert store.delete("Team", digest) is False, "gone from the store, and now from here"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_bad_copy_is_fetched_again(url: str, tmp_path: Path) -> None:
    store = cached(url, tmp_path)
    digest = store.put("Team", b"weights")
    store.get("Team", digest)
    (copy,) = tmp_path.rglob("*.safetensors")
    copy.write_bytes(b"weightz")
    assert store.get("Team", digest) == b"weights"
    assert copy.read_bytes() == b"weights"


# --- a put beside a careful deletion ----------------------------------------------------------------------


def test_a_put_waits_for_a_deletion_and_stores_again_what_it_took(url: str) -> None:
    store = FsspecTensors(url)
    digest = store.put("team", b"weights")
    path = store._path("team", digest)
    mark = path.replace(".safetensors", ".0000.doomed")
    store._fs.pipe_file(mark, b"")  # a deletion that has just looked at the age
    putting = threading.Thread(target=store.put, args=("team", b"weights"))
    putting.start()
    time.sleep(0.3)
    assert putting.is_alive(), "the deletion may still remove what was just written"
    store._fs.rm_file(path)
    store._fs.rm_file(mark)
    putting.join(10)
    assert store.get("team", digest) == b"weights"


def test_the_mark_of_a_deletion_that_was_killed_is_swept(url: str) -> None:
    store = FsspecTensors(url)
    digest = store.put("team", b"weights")
    mark = f"team/{digest[7:9]}/{digest[7:]}.0000.doomed"
    store._fs.pipe_file(f"{store._root}/{mark}", b"")
    assert store.temporary(3600) == []
    assert store.temporary(-1) == [mark]
    assert store.sweep(-1) == [mark]
    assert list(store.digests("team")) == [digest]


# --- from settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/srv/elm", "file:///srv/elm", "local:///srv/elm"])
def test_a_folder_is_local(tmp_path: Path, place: str) -> None:
    store = open_tensors(Settings(home=tmp_path, tensors=place))
    assert isinstance(store, LocalTensors)
    assert store.directory == Path("/srv/elm")


def test_a_url_has_a_cache_under_home(tmp_path: Path) -> None:
    store = open_tensors(Settings(home=tmp_path, tensors="memory://x", tensor_cache_mb=3, tensor_cache_hours=2))
    assert isinstance(store, FsspecTensors)
    assert store.cache is not None
    assert (store.cache.directory, store.cache.max_bytes) == (tmp_path / "cache" / "tensors", 3 << 20)
    assert store.cache.max_age_seconds == 7200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tensors": "nosuch://bucket/x"}, "nosuch"),
        ({"tensors": "s3://"}, "names no bucket"),
        ({"tensors": "file://relative"}, "expected file:///FOLDER"),
        ({"tensors": "/srv", "tensor_options": {"endpoint_url": "http://x"}}, "tensors is a folder"),
        ({"tensors": "s3://b", "tensor_options": {"secret": "x"}}, "tensor_options.secret looks like a secret"),
        ({"tensors": "gs://b/x"}, "Please install gcsfs to access Google Storage"),  # not installed with our extras
    ],
)
def test_what_cannot_be_opened_is_said_in_one_sentence(tmp_path: Path, settings: Any, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_tensors(Settings(home=tmp_path, **settings))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "x"},
        {"secret": "x"},
        {"token": "x"},
        {"password": "x"},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"client_kwargs": {"aws_access_key_id": "x"}},
        {"Account_Key": "x"},
        {"connection_string": "x"},
    ],
)
def test_secrets_are_refused_by_name_without_their_value(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID") as caught:
        check_options(options)
    assert "'x'" not in str(caught.value)


def test_what_is_no_secret_is_taken() -> None:
    check_options({"endpoint_url": "http://x", "client_kwargs": {"region_name": "eu"}, "anon": True, "keyring": 1})


def test_a_password_in_a_url_is_not_shown() -> None:
    assert redacted("sftp://me:hush@host/x") == "sftp://me:***@host/x"
    assert redacted("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
    assert local_folder("s3://bucket/x") is None


# --- a bucket that keeps what is deleted ------------------------------------------------------------------


@pytest.mark.s3
def test_a_bucket_with_versions_is_named_by_purge_and_doctor(s3_server: S3Server, tmp_path: Path) -> None:
    store = FsspecTensors("s3://elm-versions/x", options={"endpoint_url": s3_server.endpoint})
    store._fs.mkdir("elm-versions")
    assert store.keeps_deleted() is None
    bank = Bank(Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}"), store, index="exact")
    bank.bind("default", MODEL)
    learn = learner(bank)
    first, second = learn("1 one", unit(1, 0, 0, 0)), learn("2 two", unit(0, 1, 0, 0))
    assert bank.purge("default", [first.id], actor="t", reason=None).left == ()
    assert examine(bank).notes == ()

    def versioning(status: str) -> None:
        options = {"Bucket": "elm-versions", "VersioningConfiguration": {"Status": status}}
        store._fs.call_s3("put_bucket_versioning", **options)

    versioning("Enabled")
    store.put("default", b"once more")
    (sentence,) = bank.purge("default", [second.id], actor="t", reason=None).left
    assert "keeps versions (versioning: Enabled)" in sentence
    assert examine(bank).notes == (sentence,)
    kept = store._fs.call_s3("list_object_versions", Bucket="elm-versions")["Versions"]
    assert len(kept) >= 2, "the purged tensor is still there, which is what the sentence says"
    versioning("Suspended")
    assert "(versioning: Suspended)" in str(store.keeps_deleted())
    bank.close()


@pytest.mark.s3
def test_a_bucket_that_will_not_say_is_no_bucket_that_keeps_nothing(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = FsspecTensors(s3_server.new_url(), options={"endpoint_url": s3_server.endpoint})
    assert "allow s3:GetBucketVersioning" in str(store.keeps_deleted())


# --- a server that is not as it should be -----------------------------------------------------------------


@pytest.mark.s3
def test_a_missing_bucket_is_one_sentence(s3_server: S3Server) -> None:
    store = FsspecTensors("s3://no-such-bucket/x", options={"endpoint_url": s3_server.endpoint})
    digest = "sha256:" + "0" * 64
    asks = (lambda: store.put("team", b"x"), lambda: store.get("team", digest), lambda: list(store.digests("team")))
    for ask in asks:
        with pytest.raises(
            StorageError, match=r"the bucket of s3://no-such-bucket/x at http://.* does not exist"
        ) as caught:
            ask()
        assert not isinstance(caught.value, TensorMissing), "all memories would be quarantined"


@pytest.mark.s3
def test_wrong_credentials_are_one_sentence(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = FsspecTensors(s3_server.new_url(), options={"endpoint_url": s3_server.endpoint})
    asks = (lambda: store.put("team", b"x"), lambda: store.get("team", "sha256:" + "0" * 64))
    for ask in asks:
        with pytest.raises(
            StorageError, match=r"access was refused .* check the credentials in the environment"
        ) as caught:
            ask()
        assert not isinstance(caught.value, TensorMissing)
        assert "\n" not in str(caught.value)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_server")
def test_a_server_that_is_not_there_is_one_sentence() -> None:
    store = FsspecTensors("s3://bucket/x", options={"endpoint_url": "http://127.0.0.1:1"})
    for ask in (lambda: store.put("team", b"x"), lambda: store.get("team", "sha256:" + "0" * 64), store.namespaces):
        with pytest.raises(
            StorageError, match=r"s3://bucket/x at http://127.0.0.1:1: .* check that the server is up"
        ):
            ask()
