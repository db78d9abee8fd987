"""Opens a Chroma folder and asks every collection once. Run as a child process, because a bad folder can segfault.

``python -m elm_agent.storage.indexes.chroma_probe FOLDER``: 0 usable, 3 broken (the reason is on standard error).
The settings of the client and of a collection live here too, so that child and parent open the same thing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

BROKEN = 3


def open_client(directory: Path) -> Any:
    """The embedded client: no telemetry, no server, whatever ``.env`` or the environment say."""
    import chromadb
    from chromadb.config import Settings

    settings = Settings(
        _env_file=None,
        anonymized_telemetry=False,
        chroma_api_impl="chromadb.api.rust.RustBindingsAPI",
        chroma_otel_collection_endpoint="",
    )
    return chromadb.PersistentClient(path=str(directory), settings=settings)


def collection_options() -> dict[str, Any]:
    """How a collection is made. The HNSW files are never written: a crash can leave them unreadable, and the
    log, from which they are rebuilt at every open, survives."""
    hnsw = {
        "space": "cosine",  # the default is l2
        "sync_threshold": 10_000_000,
        "ef_search": 256,
        "ef_construction": 200,
        "max_neighbors": 32,
    }
    return {"configuration": {"hnsw": hnsw}, "embedding_function": None}


def probe(directory: Path) -> None:
    """List, count and search every collection; whatever is wrong raises (or ends the process)."""
    client = open_client(directory)
    for found in client.list_collections():
        collection = client.get_collection(found.name, embedding_function=None)
        width = int(collection.metadata["width"])
        if collection.count():
            collection.query(query_embeddings=[[1.0] + [0.0] * (width - 1)], n_results=1, include=["distances"])
    client.close()


def main() -> int:
    import chromadb  # noqa: F401  a missing package is not a broken folder

    try:
        probe(Path(sys.argv[1]))
    except BaseException as error:  # noqa: BLE001  a panic of the Rust core is a BaseException; all mean broken
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
