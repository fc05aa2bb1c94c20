"""What the API offers, and two owners to ask it with: one whose objects are shown to a principal, one whose are not."""

from ipnext.model.access.owner import OwnerManifest
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import FoundVersion, VersionState
from ipnext.store.sources.sources import WatchedSource

HIDDEN, SHOWN = "ads-ranker", "ranker"
FEED = "feed"
"""A source of both."""

OWNER = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "search"}}


def routes(app):
    """(method, path, action) of every endpoint; the action is None where there is none."""
    schema = app.openapi()
    dependants = {}
    for route in app.routes:
        for each in getattr(route, "routes", [route]):
            collect(each, dependants)
    for path, operations in schema["paths"].items():
        for method in operations:
            yield method.upper(), path, dependants.get((method.upper(), path), ())


def collect(route, found):
    dependants = {}
    collect_dependants(route, dependants)
    for place, dependant in dependants.items():
        found[place] = tuple(
            a for d in getattr(dependant, "dependencies", ()) if (a := getattr(d.call, "action", None))
        )


def collect_dependants(route, found):
    """(method, path) of a route -> what FastAPI knows of its endpoint."""
    context = getattr(route, "effective_route_contexts", None)
    for each in context() if callable(context) else [route]:
        dependant = getattr(each, "dependant", None)
        for method in getattr(each, "methods", None) or ():
            if dependant is not None:
                found[method, each.path] = dependant


def seed_two_owners(rooms):
    """A model of owner `search`, one of owner `ads`, with a history each, and a plan in force."""
    rooms.seed(SHOWN)
    document = rooms.model_document(HIDDEN)
    document["metadata"]["owner"] = "ads"
    with rooms.store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)
    with rooms.store.begin() as unit:
        for owner in ("search", "ads"):
            manifest = OwnerManifest.model_validate(OWNER | {"metadata": {"name": owner}})
            unit.put_owner(manifest, expected_version=None)
        unit.put_denial("d" * 64, reason="poisoned", denied_by="ann")
    for model in (SHOWN, HIDDEN):
        add_feed(rooms, model)
        rooms.publish_directly(model, "a")
        rooms.serve(1, model=model)
        rooms.publish_directly(model, "b")
        rooms.refuse(2, Reason.SCHEMA_MISMATCH, f"{model} is refused", model=model)
    for name, models in (("hold-ads", [HIDDEN]), ("hold-both", [HIDDEN, SHOWN])):
        document = freeze_document(name, models)
        with rooms.store.begin() as unit:
            unit.put_freeze(FreezeManifest.model_validate(document), expected_version=None)
            unit.add_event(None, "FreezeApplied", f"{name} holds {models}")
    rooms.adopt_plan()


def add_feed(rooms, model):
    """A source to which versions are pushed, with one version that has ended."""
    spec = SourceSpec.model_validate({"name": FEED, "part": "dense", "push": {}})
    with rooms.store.begin(model) as unit:
        unit.put_sources(model, [WatchedSource(spec=spec, part="dense", upstream=model)])
        found = unit.add_version(model, FEED, FoundVersion(key=f"{model}-v1", place="file:///in/v1"))
        unit.end_version(found.ordinal, VersionState.REFUSED, f"{model} refuses it")
        unit.mark_sent("push", model)


def freeze_document(name, models):
    window = {"start": "2026-01-01T00:00", "end": "2036-01-01T00:00"}
    spec = {"reason": "a sale", "windows": [window], "scope": {"models": models}}
    return {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}
