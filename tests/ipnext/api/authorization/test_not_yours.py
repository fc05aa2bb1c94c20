"""An object of another owner is answered like one that is not there.

Same status, words and headers, after the same statements. Every parameter of a path or query and every text of a body
is in one of the tables here; a new one fails until it is.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import event
from sqlmodel import update

from ipnext.api.requests import guarded_route
from ipnext.model.access.rights import Role
from ipnext.store.tables.planning import PlanRow
from tests.ipnext.api.surface import FEED, HIDDEN, OWNER, SHOWN, freeze_document, routes

MISSING = "abs-ranker"

NOW = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
"""The end of an open window is told from now on."""

PAIRS = {
    "model": (HIDDEN, MISSING),
    "change": (f"{HIDDEN}-b", f"{MISSING}-b"),
    "plan": ("plan-ads", "plan-abs"),
    "replan": (f"shortage-{HIDDEN}-2", f"shortage-{MISSING}-2"),
    "owner": ("ads", "abs"),
    "freeze": ("hold-ads", "hold-abs"),
}
"""Kind of object -> one of another owner, and one that is not there."""

OF_NOBODY = "of nobody"
"""Of the fleet, of a part or snapshot within an object, or no object at all."""

PARAMETERS = {
    **dict.fromkeys(("change_id",), "change"),
    **dict.fromkeys(("plan_id",), "plan"),
    **dict.fromkeys(("replan_id",), "replan"),
    **dict.fromkeys(("owner",), "owner"),
    **dict.fromkeys(("model", "search"), "model"),
    "after": "any",
    **dict.fromkeys(
        (
            *(
                "source",
                "part",
                "number",
                "generation",
                "region",
                "replica",
                "tail",
                "limit",
                "state",
                "ready",
                "kind",
                "reason",
            ),
            *("sha256", "digest", "key_id", "binding_id", "fleetOnly", "expectedVersion", "dryRun", "Idempotency-Key"),
            *("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"),
            "label",
            *("last-event-id", "who", "action", "object", "outcome", "since", "oldestFirst", "key", "nonce"),
        ),
        OF_NOBODY,
    ),
}
"""Parameter of a path, query or header -> kind of object that it names. `name` follows from the path; `after` may be of
any kind."""

VALUES = {
    "region": "eu",
    "generation": 1,
    "part": "dense",
    "source": FEED,
    "number": 1,
    "sha256": "0" * 64,
    "digest": "0" * 64,
    "key_id": "a" * 16,
    "binding_id": "a" * 16,
}

BODIES = {
    "PUT /v1/models/{name}": lambda rooms, name: rooms.model_document(name),
    "POST /v1/models/{name}/publish": lambda *_: {"parts": {"dense": {"digest": "0" * 64}}},
    "PUT /v1/freezes/{name}": lambda _, name: freeze_document(name, [SHOWN]),
    "PUT /v1/denials/{digest}": lambda *_: {"reason": "poisoned"},
    "PUT /v1/owners/{owner}": lambda _, name: OWNER | {"metadata": {"name": name}},
    "POST /v1/keys": lambda *_: {"name": "made", "role": "viewer"},
    "POST /v1/roles": lambda *_: {"subject": "user:ann", "role": "viewer"},
    "PUT /v1/fleet": lambda rooms, _: rooms.fleet_document(),
    "POST /v1/changes/{change_id}/override": lambda *_: {"reason": "now"},
    "PUT /v1/models/{name}/snapshots/{part}/{number}/hold": lambda *_: {"reason": "an audit"},
}

FIELDS = {
    "PUT /v1/models/{name}": {
        "metadata.name": "model",
        "metadata.owner": "owner",
        "spec.access.callers": "owner",
    },
    "POST /v1/models/{name}/publish": {"changeId": "change"},
    "POST /v1/models/{name}/rollback": {"changeId": "change"},
    "POST /v1/models/{name}/repair": {"changeId": "change"},
    "POST /v1/replans": {"replanId": "replan"},
    "PUT /v1/fleet": {"spec.owners.owner": "owner"},
    "PUT /v1/owners/{owner}": {"metadata.name": "owner", "metadata.owner": "owner"},
    "PUT /v1/freezes/{name}": {
        "metadata.name": "freeze",
        "metadata.owner": "owner",
        "spec.scope.models": "model",
        "spec.scope.owners": "owner",
    },
    "POST /v1/keys": {"owner": "owner"},
    "POST /v1/roles": {"owner": "owner", "subject": "owner"},
}
"""Texts of bodies that name an object of an owner."""

SAYS_THAT_IT_IS_TAKEN = {
    ("PUT /v1/models/{name}", "metadata.name"),
    *((f"POST /v1/models/{{name}}/{verb}", "changeId") for verb in ("publish", "rollback", "repair")),
}
"""Names and ids that all owners share: who may take one learns that it is taken, and nothing else (docs/access.md)."""

ROLES = [
    *((role, {"owner": "search"}) for role in (Role.CALLER, Role.VIEWER, Role.PUBLISHER, Role.ADMIN)),
    (Role.OPERATOR, {"region": "eu"}),
    (Role.ADMIN, {}),
]
"""The last one sees the models of all owners but of `ads`, by a policy."""

POLICY = '@id("hidden") forbid (principal, action, resource is Model) when { ["ads", "abs"].contains(resource.owner) };'


class Endpoint(NamedTuple):
    method: str
    path: str

    def __str__(self):
        return f"{self.method} {self.path}"

    @property
    def takes_a_name(self):
        return (str(self), "metadata.name") in SAYS_THAT_IT_IS_TAKEN

    def body(self, rooms, name):
        """A good body about an object of this name."""
        return BODIES.get(str(self), lambda *_: {})(rooms, name)


class Answer(NamedTuple):
    status: int
    text: str
    headers: dict
    statements: tuple


@dataclass
class Asker:
    """A principal, and what the store is asked for while its requests are answered."""

    http: httpx.AsyncClient
    statements: list
    is_of_the_fleet: bool

    def sees(self, endpoint, kind):
        """Whether objects of the kind are no secret for the principal there."""
        if kind == OF_NOBODY or not self.is_of_the_fleet:
            return kind == OF_NOBODY
        return (
            kind in {"freeze", "replan"}
            or endpoint.path.startswith(("/v1/keys", "/v1/roles", "/v1/fleet"))
            or (kind == "owner" and endpoint.method != "GET" and "/models/" not in endpoint.path)
        )

    async def ask(self, endpoint, given, parameters, body):
        """Ask with these parameters.

        The others are of objects that are the principal's, and nothing is written if that can be asked for.
        """
        query = {"model": SHOWN} if endpoint.path.endswith("/freezes/now") else {}
        query |= {"dryRun": "true"} if any(each["name"] == "dryRun" for each in parameters) else {}
        self.statements.clear()
        answer = await self.http.request(
            endpoint.method,
            filled(endpoint.path, given.get("path", {})),
            params=query | given.get("query", {}),
            headers=given.get("header", {}),
            json=body,
        )
        headers = {name: value for name, value in answer.headers.items() if name != "etag"}
        return Answer(answer.status_code, answer.text, headers, tuple(self.statements))


@pytest.fixture(params=ROLES, ids=lambda found: "-".join([found[0], *found[1].values()]))
async def asker(request, two_owners, monkeypatch):
    role, scope = request.param
    with two_owners.store.begin() as unit:
        unit.add_shortage_replan(HIDDEN, 2)
    two_owners.adopt_plan("plan-ads")
    with two_owners.store.begin() as unit:
        unit._session.exec(update(PlanRow).where(PlanRow.id == "plan-ads").values(scope=HIDDEN))
    if not scope:
        policies = two_owners.directory / "own.cedar"
        policies.write_text(POLICY)
        two_owners.settings = two_owners.settings.model_copy(update={"policies_file": policies})

    seen, observe = {}, two_owners.infrastructure.observe
    monkeypatch.setattr(
        two_owners.infrastructure, "observe", lambda region, *_: seen.setdefault(region, observe(region))
    )

    async def no_record(*_):
        """Refusals are recorded up to a rate."""

    monkeypatch.setattr("ipnext.api.authorization.audit_entries.Recorder.record_refusal", no_record)
    monkeypatch.setattr(guarded_route, "LATE_SECONDS", math.inf)  # however slow the machine
    app, key = two_owners.app(), two_owners.add_key("asker", role, **scope)
    app.state.platform.access._clock = lambda: 0.0
    statements = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    event.listen(two_owners.store._engine, "before_cursor_execute", note)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=headers
    ) as http:
        await http.get("/v1/sessions/current")
        yield Asker(http, statements, is_of_the_fleet=not scope)
    event.remove(two_owners.store._engine, "before_cursor_execute", note)


def kind_of(path, parameter):
    if parameter == "name":
        return "freeze" if "/freezes/" in path else "model"
    return PARAMETERS[parameter]


def filled(path, values):
    """A path with these parameters, the others of objects that are the asker's."""
    own = {"name": SHOWN, "change_id": f"{SHOWN}-b", "plan_id": "plan-1", "replan_id": "none", "owner": "search"}
    if "/freezes/" in path:
        own["name"] = "hold-both"
    return path.format(**VALUES | own | values)


def operations(app):
    """Endpoint -> its operation in the schema, but for the one whose answer does not end."""
    schema = app.openapi()
    for method, path, _ in routes(app):
        if not path.endswith("/stream"):
            yield Endpoint(method, path), schema["paths"][path][method.lower()].get("parameters", ())


def differences(theirs, none, pair):
    """What tells an answer about an object of another owner from one about an object that is not there."""
    found = []
    text, text_of_none = (NOW.sub("now", text) for text in (theirs.text.replace(*pair), none.text))
    if (theirs.status, text) != (none.status, text_of_none):
        found.append(f"{theirs.status} {text[:200]} != {none.status} {text_of_none[:200]}")
    if theirs.headers != none.headers:
        found.append(f"{theirs.headers} != {none.headers}")
    if theirs.statements != none.statements:
        found.append(f"{len(theirs.statements)} statements, {len(none.statements)} of one that is not there")
    return found


async def test_every_parameter_of_another_owners_object_is_answered_as_of_none(asker, two_owners):
    faults = []
    for endpoint, parameters in operations(two_owners.app()):
        for parameter in parameters:
            name, kind = parameter["name"], kind_of(endpoint.path, parameter["name"])
            if asker.sees(endpoint, kind):
                continue
            for pair in PAIRS.values() if kind == "any" else (PAIRS[kind],):
                answers = []
                for value in pair:
                    body = endpoint.body(two_owners, value)
                    placed_in = {"path": {}, "query": {}, "header": {}} | {parameter["in"]: {name: value}}
                    answers.append(await asker.ask(endpoint, placed_in, parameters, body))
                if endpoint.takes_a_name and answers[1].status == 200:
                    assert (answers[0].status, '"ads"' in answers[0].text) == (404, False)
                    continue
                faults += [f"{endpoint}, {name}: {each}" for each in differences(*answers, pair)]
    assert not faults, "\n".join(faults)


async def test_every_text_of_a_body_that_names_another_owners_object_is_answered_as_of_none(asker, two_owners):
    faults = []
    for endpoint, parameters in operations(two_owners.app()):
        for field, kind in FIELDS.get(str(endpoint), {}).items():
            if asker.sees(endpoint, kind):
                continue
            answers = []
            for value in PAIRS[kind]:
                body = endpoint.body(two_owners, SHOWN if kind == "owner" else value)
                given = placed(body, field.split("."), f"user:{value}" if field == "subject" else value)
                at = {"path": {"name": value} if field == "metadata.name" and kind in {"model", "freeze"} else {}}
                answers.append(await asker.ask(endpoint, at, parameters, given))
            if (str(endpoint), field) in SAYS_THAT_IT_IS_TAKEN and answers[0].status in {404, 409}:
                assert "ads" not in answers[0].text.replace(PAIRS[kind][0], ""), endpoint
                continue
            faults += [f"{endpoint}, {field}: {each}" for each in differences(*answers, PAIRS[kind])]
    assert not faults, "\n".join(faults)


def placed(body, steps, value):
    """A body with a value at a place; lists of it get one item."""
    first, *rest = steps
    former = body.get(first)
    if rest:
        return body | {
            first: [placed({}, rest, value)] if isinstance(former, list) else placed(former or {}, rest, value)
        }
    return body | {first: [value] if first in {"models", "owners", "callers"} else value}


PLAIN = {
    "PUT /v1/models/{name}": (
        "apiVersion kind metadata.annotations.* metadata.labels.* spec.demand.region spec.graph.nodes.inputs.* "
        "spec.graph.nodes.name spec.graph.nodes.part spec.graph.nodes.prompt.lists.*.item "
        "spec.graph.nodes.prompt.lists.*.order spec.graph.nodes.prompt.template spec.graph.outputs.* "
        "spec.parts.adapterOf spec.parts.engine spec.parts.freshness.target spec.parts.hardware.kind spec.parts.name "
        "spec.lifecycle.after spec.lifecycle.before spec.lifecycle.leaveOut spec.lifecycle.replaces "
        "spec.lifecycle.stage "
        "spec.optimization.compile.hardware "
        "spec.optimization.compile.output spec.optimization.compile.part "
        "spec.optimization.plugin.hardware "
        "spec.optimization.plugin.kind spec.optimization.plugin.output spec.optimization.plugin.part "
        "spec.optimization.quantize.hardware "
        "spec.optimization.quantize.output spec.optimization.quantize.part spec.optimization.quantize.tables "
        "spec.retention.snapshots.age spec.rollout.gate.outputs "
        "spec.split.default spec.split.parts.hardware spec.split.parts.hardware.kind spec.split.parts.modules "
        "spec.split.parts.name spec.sources.directory.path spec.sources.every spec.sources.mlflow.alias "
        "spec.sources.mlflow.model spec.sources.mlflow.uri spec.sources.name spec.sources.oci.repository "
        "spec.sources.oci.tag spec.sources.part spec.sources.plugin.kind spec.sources.promote.metrics.name "
        "spec.sources.promote.tags.* spec.sources.s3.uri spec.validation.liveLatency.part "
        "spec.validation.replay.output spec.validation.replay.part "
        "spec.validation.signers.publicKeys spec.validation.skip.*"
    ),
    "POST /v1/models/{name}/publish": "overrideFreeze",
    **{f"POST /v1/models/{{name}}/{verb}": "reason" for verb in ("pause", "resume", "approve", "promote", "abort")},
    **{f"POST /v1/models/{{name}}/sources/{{source}}/{verb}": "reason" for verb in ("pause", "resume", "poll")},
    "POST /v1/models/{name}/sources/{source}/versions": "digest key lineage.* tags.* trainedAt uri",
    "PUT /v1/models/{name}/snapshots/{part}/{number}/hold": "reason",
    "POST /v1/artifacts/missing": "digests",
    "PUT /v1/artifacts/blobs/{sha256}": "",
    "POST /v1/artifacts/snapshots": (
        "checkpoint.architecture checkpoint.base checkpoint.dtype checkpoint.tensors engine files.path "
        "files.sha256 format parent producer.* signature.inputs.name signature.outputs.name "
        "signature.request_inputs"
    ),
    "PUT /v1/artifacts/snapshots/{digest}/signature": (
        "payload payloadType signatures.cosign.documents signatures.cosign.payload signatures.keyid signatures.sig"
    ),
    "PUT /v1/models/{name}/snapshots/{part}/{number}/profiles": (
        "conditions.engine_version conditions.machine conditions.region conditions.replica conditions.url hardware "
        "measured_at"
    ),
    "POST /v1/replans/steer": "reason",
    "PUT /v1/fleet": "apiVersion kind spec.hardware spec.regions spec.supply.hardware spec.supply.region",
    "PUT /v1/owners/{owner}": (
        "apiVersion kind metadata.annotations.* metadata.labels.* spec.description spec.members.subject"
    ),
    "PUT /v1/freezes/{name}": (
        "apiVersion kind metadata.annotations.* metadata.labels.* spec.ics spec.reason spec.scope.regions "
        "spec.timeZone spec.windows.duration spec.windows.end spec.windows.exdates spec.windows.rdates "
        "spec.windows.rrule spec.windows.start spec.windows.timeZone"
    ),
    "POST /v1/changes/{change_id}/override": "check reason",
    "PUT /v1/denials/{digest}": "reason",
    "POST /v1/regions/{region}/drain": "reason",
    "POST /v1/regions/{region}/return": "reason",
    "POST /v1/keys": "name region",
    "POST /v1/roles": "region",
}
"""Texts of bodies that name nothing of an owner: words, what lies within the object itself, what is of the fleet, and
digests, which are no secret (docs/access.md)."""


def texts(components, schema, path=(), seen=frozenset()):
    """Places of the texts that a schema allows, but for those of a closed list."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        if name not in seen:
            yield from texts(components, components[name], path, seen | {name})
        return
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for each in schema.get(key, ()):
            yield from texts(components, each, path, seen)
    for key, step in (("items", ()), ("additionalProperties", ("*",))):
        if isinstance(schema.get(key), dict):
            yield from texts(components, schema[key], path + step, seen)
    for name, each in schema.get("properties", {}).items():
        yield from texts(components, each, (*path, name), seen)
    if schema.get("type") == "string" and "enum" not in schema:
        yield ".".join(path)


def test_every_text_of_a_body_is_known(rooms):
    schema = rooms.app().openapi()
    found = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                found[f"{method.upper()} {path}"] = set(texts(schema["components"]["schemas"], content["schema"]))
    known = {
        name: set(FIELDS.get(name, ())) | set(PLAIN.get(name, "none").split() or [""]) - {"none"} for name in found
    }
    assert found == known
