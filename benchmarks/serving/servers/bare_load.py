"""Fetches, loads and warms up a snapshot in a process that holds the former one.

Prints the seconds, once a line came in. Started with the uris of store, former snapshot and new snapshot, and a
directory for its cache.
"""

import sys
import time
from pathlib import Path

from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.stores.locations import open_store
from serving.engines.base import LoadedPart, find_engine


def main(artifacts: str, former_uri: str, uri: str, cache: Path) -> None:
    """Load both snapshots. The first load is not counted: a host that runs has made one, with all that it imports."""
    store = open_store(artifacts)
    former = _loaded(store, former_uri, cache)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    part = _loaded(store, uri, cache)
    print(time.perf_counter() - began, flush=True)
    former.close()
    part.close()


def _loaded(store: ArtifactStore, uri: str, cache: Path) -> LoadedPart:
    manifest = store.manifest(uri)
    part = find_engine(manifest.engine).load(store.fetch(uri, cache), manifest, {})
    part.warm_up()
    return part


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
