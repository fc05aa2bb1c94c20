"""Database and artifact store of the embedded platform: below the state directory, or on running servers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipnext.artifacts.stores.locations import open_store
from ipnext.errors import ArtifactMissing, Conflict, InvalidInput, NotFound
from ipnext.infra.process.atomic_file import replace_file
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.parser import parse_manifests
from ipnext.settings import DevSettings
from ipnext.store.store import Store

EMBEDDED_FLEET = Path(__file__).with_name("fleet.yaml")
_NO_BLOB: Final = "0" * 64


@dataclass(frozen=True)
class Stores:
    """Addresses of database and artifacts."""

    database_url: str
    artifacts_uri: str
    endpoint_url: str | None = None

    @classmethod
    def of(cls, state: Path, settings: DevSettings) -> "Stores":
        """Return the stores of the settings, else those of the state directory."""
        return cls(
            settings.dev_database_url or f"sqlite:///{state / 'ipnext.db'}",
            settings.dev_artifacts_uri or (state / "artifacts").absolute().as_uri(),
            settings.s3_endpoint_url,
        )

    @property
    def display_names(self) -> dict[str, str]:
        """The stores in a form for users."""
        return {"record": Store.open(self.database_url).name, "artifacts": self.artifacts_uri}


def prepare(state: Path, stores: Stores, fleet: Path | None) -> tuple[str, ...]:
    """Migrate the database and put a fleet into it: the given one, else the embedded one at the first start.

    Returns the regions. Conflict if the state directory was begun on other stores, or at another path, because its
    agents, its runs and the database refer to them; and for a new directory if the database belongs to another
    platform. Unavailable if a server does not answer; InvalidInput if the file is no fleet, or a URL has another form.
    """
    known_stores = state / "stores.json"
    with _naming_option("--database-url (IPNEXT_DEV_DATABASE_URL)"):
        store = Store.open(stores.database_url)
    with _naming_option("--artifacts (IPNEXT_DEV_ARTIFACTS_URI)"):
        artifacts = open_store(stores.artifacts_uri, endpoint_url=stores.endpoint_url)
    began_below = (state / "ipnext.db").exists()
    begun = began_below or known_stores.exists()
    _check_same(known_stores, stores.display_names, began=began_below)
    if stores.artifacts_uri == (state / "artifacts").absolute().as_uri():
        (state / "artifacts").mkdir(
            parents=True, exist_ok=True
        )  # so that `ipnext platform check` finds it before the first publish
    with suppress(ArtifactMissing):
        artifacts.open_blob(_NO_BLOB).close()  # report a missing or forbidden bucket now
    try:
        store.migrate()
        with store.begin() as repository:
            if not begun and (other := repository.belongs_to()):
                msg = (
                    f"--database-url (IPNEXT_DEV_DATABASE_URL): the record {store.name} belongs to another "
                    "platform, whose Temporal "
                    f"was reached at {other.address}, and {state} is new. Allowed: "
                    "the state directory that it was begun with, or a "
                    "database of its own for each platform; if that platform is gone for good, see docs/store.md"
                )
                raise Conflict(msg)
            try:
                known = repository.fleet().spec
            except NotFound:
                known = None
            if fleet is not None or known is None:
                known = repository.put_fleet(read_fleet(fleet or EMBEDDED_FLEET).spec, expected_version=None).spec
    finally:
        store.close()
    replace_file(known_stores, json.dumps(stores.display_names, indent=1).encode())
    return known.regions


def read_fleet(path: Path) -> FleetManifest:
    """Return the fleet of a manifest file. Raises InvalidInput that names the file."""
    try:
        text = path.read_text()
    except OSError as error:
        msg = f"--fleet: {path}: {error.strerror}"
        raise InvalidInput(msg, field="fleet", value=str(path)) from error
    fleets = [m for m in parse_manifests(text) if isinstance(m, FleetManifest)]
    if len(fleets) != 1:
        msg = f"--fleet: {path} must hold one manifest of kind Fleet, it holds {len(fleets)}"
        raise InvalidInput(msg, field="fleet", value=str(path))
    return fleets[0]


@contextmanager
def _naming_option(option: str) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        msg = f"{option}: {error.message}"
        raise InvalidInput(msg, field=error.field, value=error.value, allowed=error.allowed) from error


def _check_same(path: Path, named: Mapping[str, str], *, began: bool) -> None:
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        known = Stores.of(path.parent, DevSettings.model_construct()).display_names if began else named
    except ValueError as error:
        msg = f"{path}: is no JSON ({error}); allowed: an object of record and artifacts, where each of them lies"
        raise InvalidInput(msg, field="stores") from error
    for kind, place in named.items():
        if known.get(kind, place) != place:
            msg = (
                f"{path.parent} was begun with its {kind} in {known[kind]}, not {place}: name that one, "
                "or choose another --state; "
                f"if all of it was moved there (docs/store.md), write that into {path}"
            )
            raise Conflict(msg)
