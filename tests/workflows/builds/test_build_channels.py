"""Everything that components read is known.

Between two builds it is read with tolerance, and the next build (next_build.py) extends it. A module that reads JSON,
or makes a value of plain data, is in one of the tables below. A new one is in none, and fails the test.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.workflows.builds.next_build import (
    AGENT_ANSWER,
    AGENT_REQUEST,
    API_ANSWER,
    CHANNELS,
    DOCUMENT,
    EVENT_STREAM,
    FORKS,
    HOST_ANSWER,
    HOST_REQUEST,
    IDENTITY,
    NOTE,
    PAYLOAD,
    PORTS,
    ROUTER_ANSWER,
    SCHEMA,
    STATE,
    TABLE,
    TO_AGENT,
    TO_GATEWAY,
    TO_HOST,
    TO_ROUTER,
    TO_SUPERVISOR,
)

ROOT = Path(__file__).parents[3]
PACKAGES = ("activities", "ipnext", "serving", "workflows")
TOLERANT = {
    "ipnext.artifacts.bounded_json": frozenset({"load_bounded", "parse_bounded"}),
    "ipnext.infra.process.message_link": frozenset({"from_object"}),
    "ipnext.model.wire": frozenset({"decode", "decode_frozen", "decode_plain"}),
    "serving.http.messages": frozenset({"parse_model"}),
}
"""Module -> what reads and ignores unknown fields."""
STRICT_READERS = {"ipnext.artifacts.bounded_json": frozenset({"read_document", "validate_document"})}
"""Module -> what reads and refuses unknown fields."""
STRICT = frozenset({"model_validate", "model_validate_json", "validate_json", "validate_python"}).union(
    *STRICT_READERS.values()
)
PLAIN = frozenset({"json", "orjson", "pickle"})

BETWEEN_BUILDS: Mapping[str, frozenset[str]] = {
    "activities/stages/activities.py": frozenset({PAYLOAD}),
    "activities/stages/shadow.py": frozenset({PAYLOAD}),
    "activities/regions/parsed_sets.py": frozenset({DOCUMENT}),
    "activities/regions/recovery.py": frozenset({DOCUMENT}),
    "ipnext/client/calls/access.py": frozenset({API_ANSWER}),
    "ipnext/client/calls/audit.py": frozenset({API_ANSWER}),
    "ipnext/client/connection.py": frozenset({API_ANSWER}),
    "ipnext/client/credential.py": frozenset({API_ANSWER}),
    "ipnext/client/errors.py": frozenset({API_ANSWER}),
    "ipnext/infra/router/access_file.py": frozenset({STATE}),
    "ipnext/infra/agent/http_api.py": frozenset({AGENT_REQUEST}),
    "ipnext/infra/control.py": frozenset({HOST_ANSWER, ROUTER_ANSWER}),
    "ipnext/infra/error_body.py": frozenset({AGENT_ANSWER}),
    "ipnext/infra/process/fork_server.py": frozenset({FORKS}),
    "ipnext/infra/process/fork_server_process.py": frozenset({FORKS}),
    "ipnext/infra/local_agents.py": frozenset({AGENT_ANSWER}),
    "ipnext/infra/process/message_link.py": frozenset({TO_SUPERVISOR, TO_AGENT}),
    "ipnext/infra/kubernetes/pod_notes.py": frozenset({NOTE}),
    "ipnext/infra/process/notes.py": frozenset({NOTE}),
    "ipnext/infra/process/ports.py": frozenset({PORTS}),
    "ipnext/infra/router/process.py": frozenset({TABLE}),
    "ipnext/infra/agent/supervisor_client.py": frozenset({IDENTITY}),
    "ipnext/infra/supervisor_process.py": frozenset({TO_SUPERVISOR}),
    "ipnext/infra/agent/desired_state.py": frozenset({STATE}),
    "ipnext/model/lifecycle/failure_cause.py": frozenset({DOCUMENT}),
    "ipnext/payloads.py": frozenset({PAYLOAD}),
    "ipnext/store/access/access_lists.py": frozenset({DOCUMENT}),
    "ipnext/store/access/keys.py": frozenset({DOCUMENT}),
    "ipnext/store/access/owners.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/checks.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/deployments.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/pauses.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/publications.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/transitions.py": frozenset({DOCUMENT}),
    "ipnext/store/lists/lineages.py": frozenset({DOCUMENT}),
    "ipnext/store/lists/overviews.py": frozenset({DOCUMENT}),
    "ipnext/store/planning/placements.py": frozenset({DOCUMENT}),
    "ipnext/store/planning/plans.py": frozenset({DOCUMENT}),
    "ipnext/store/planning/replans.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/shadows.py": frozenset({DOCUMENT}),
    "ipnext/store/changes/stages.py": frozenset({DOCUMENT}),
    "ipnext/store/sources/sources.py": frozenset({DOCUMENT}),
    "ipnext/store/sources/versions.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/denials.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/derivations.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/generations.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/models.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/profiles.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/retention.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/snapshots.py": frozenset({DOCUMENT}),
    "ipnext/store/registry/servings.py": frozenset({DOCUMENT}),
    "ipnext/store/unit_of_work.py": frozenset({DOCUMENT}),
    "serving/access/access_list.py": frozenset({TABLE}),
    "serving/protocol/frames.py": frozenset({TO_HOST, TO_ROUTER}),
    "serving/genai/host.py": frozenset({HOST_REQUEST}),
    "serving/host/host.py": frozenset({HOST_REQUEST}),
    "serving/routing/host_client.py": frozenset({TO_ROUTER}),
    "serving/host/frame_server.py": frozenset({TO_HOST}),
    "serving/http/messages.py": frozenset({HOST_REQUEST, TO_HOST}),
    "serving/routing/table.py": frozenset({TABLE}),
}
"""Module -> the channels that it reads."""
NOT_READ_AS_JSON = frozenset({SCHEMA, EVENT_STREAM, TO_GATEWAY})
"""Channels that no module parses: columns are selected by name, messages of a stream by their kind in the page
(tests/ipnext/api/routes/page/test_page.py), headers by Envoy."""

COLUMNS = (
    "is made of the columns that this build selects; a document among them is read by ipnext/store/unit_of_work.py"
)
DIGEST = "is named by its digest, so that an unknown field would be another digest"
BY_NAME = "takes the fields that it knows by their names, and leaves others alone"
NO_FIELDS = "is a map of names, or one number, without fields"
ONE_BUILD = "is written by this process, or by one that it started of its own build"
OTHERS = "is written by other software than IPnext"
PEOPLE = "is written by people or their programs: a misspelt field is refused"
WHOLE = "is of `ipnext dev`, which is started again as a whole"
WITHIN_ONE_BUILD: Mapping[str, str] = {
    "activities/transition/admission.py": ONE_BUILD,
    "activities/optimization/split_process.py": ONE_BUILD,
    "activities/optimization/step_process.py": ONE_BUILD,
    "activities/runtime/tool_server.py": ONE_BUILD,
    "activities/runtime/tool_server_process.py": ONE_BUILD,
    "activities/validation/check_process.py": ONE_BUILD,
    "activities/validation/weights/deltas.py": DIGEST,
    "ipnext/sources/credentials.py": NO_FIELDS,
    "ipnext/sources/mlflow/server.py": OTHERS,
    "ipnext/sources/oci/bundles.py": OTHERS,
    "ipnext/sources/oci/image.py": OTHERS,
    "ipnext/sources/oci/registry.py": OTHERS,
    "ipnext/payload_keys.py": PEOPLE,
    "ipnext/sources/training_record.py": PEOPLE,
    "activities/validation/documents/json_process.py": ONE_BUILD,
    "activities/validation/chat_templates/process.py": ONE_BUILD,
    "activities/planning/problem.py": ONE_BUILD,
    "activities/planning/solver.py": ONE_BUILD,
    "activities/planning/solver_process.py": ONE_BUILD,
    "ipnext/access/oidc.py": OTHERS,
    "ipnext/access/policy.py": ONE_BUILD,
    "ipnext/api/errors.py": PEOPLE,
    "ipnext/api/requests/guarded_route.py": PEOPLE,
    "ipnext/api/routes/models/history.py": ONE_BUILD,
    "ipnext/api/requests/json_bodies.py": PEOPLE,
    "ipnext/api/authorization/machine_details.py": ONE_BUILD,
    "ipnext/api/routes/page/overview.py": ONE_BUILD,
    "ipnext/api/requests/stream.py": ONE_BUILD,
    "ipnext/artifacts/bounded_json.py": "gives plain values to the modules that name it",
    "ipnext/artifacts/checkpoints/reader.py": OTHERS,
    "ipnext/artifacts/layout.py": DIGEST,
    "ipnext/artifacts/programs/reader.py": DIGEST,
    "ipnext/artifacts/seen_files.py": BY_NAME,
    "ipnext/artifacts/cosign.py": OTHERS,
    "ipnext/artifacts/signing.py": OTHERS,
    "ipnext/artifacts/checkpoints/tensor_headers.py": OTHERS,
    "ipnext/cli/commands/registry/denials.py": PEOPLE,
    "ipnext/cli/commands/prediction.py": PEOPLE,
    "ipnext/login/credentials.py": BY_NAME,
    "ipnext/dev/stores.py": WHOLE,
    "ipnext/devfile.py": PEOPLE,
    "ipnext/login/identity_provider.py": OTHERS,
    "ipnext/infra/gateway/process.py": NO_FIELDS,
    "ipnext/infra/agent/peers.py": NO_FIELDS,
    "ipnext/infra/kubernetes/cluster.py": OTHERS,
    "ipnext/infra/kubernetes/settings.py": PEOPLE,
    "ipnext/infra/agent/prefetch.py": ONE_BUILD,
    "ipnext/model/access/audit_chain.py": DIGEST,
    "ipnext/model/settings/engine.py": PEOPLE,
    "ipnext/model/manifest/parser.py": PEOPLE,
    "ipnext/model/settings/routing.py": PEOPLE,
    "ipnext/model/registry/signing.py": OTHERS,
    "ipnext/settings.py": PEOPLE,
    "ipnext/process/store_environment.py": NO_FIELDS,
    "ipnext/model/wire.py": "is the tolerant reader itself",
    "ipnext/plugins.py": OTHERS,
    "ipnext/stages/kinds.py": OTHERS,
    "ipnext/stages/optional.py": PEOPLE,
    "ipnext/profiling/engine.py": OTHERS,
    "ipnext/store/access/audit.py": COLUMNS,
    "ipnext/store/changes/freezes.py": COLUMNS,
    "ipnext/store/access/role_bindings.py": COLUMNS,
    "serving/snapshots/fetch.py": DIGEST,
    "serving/weights/delta_snapshot.py": DIGEST,
    "serving/router/management_routes.py": PEOPLE,
    "serving/weights/tensor_file.py": OTHERS,
    "serving/engines/torch/compiled.py": DIGEST,
    "serving/engines/torch/program.py": DIGEST,
    "serving/snapshots/fetch_process.py": ONE_BUILD,
    "serving/genai/engine/probe.py": OTHERS,
    "serving/genai/weight_reload.py": DIGEST,
    "serving/openai/disaggregated_prefill.py": OTHERS,
    "serving/openai/engine_request.py": PEOPLE,
    "serving/openai/engines/proof.py": OTHERS,
    "serving/openai/prompt/embeddings.py": OTHERS,
    "serving/openai/routes.py": PEOPLE,
    "serving/protocol/v2.py": PEOPLE,
    "serving/optimizing/command.py": PEOPLE,
    "serving/checking/golden.py": PEOPLE,
    "serving/checking/process.py": ONE_BUILD,
    "serving/optimizing/process.py": ONE_BUILD,
    "serving/snapshots/directory.py": DIGEST,
    "serving/splitting/check/comparison.py": DIGEST,
    "serving/splitting/policy.py": PEOPLE,
    "serving/splitting/split.py": OTHERS,
}
"""Module -> why no field of a newer build can come to it. What it reads ..."""


def names_read(path: Path) -> frozenset[str]:
    """The functions that read which a module names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=name) if name in STRICT:
                found.add(name)
            case ast.Attribute(value=ast.Name(id=module), attr="loads" | "load" as name) if module in PLAIN:
                found.add(f"{module}.{name}")
            case ast.ImportFrom(module=str(module)):
                found |= {alias.name for alias in node.names} & TOLERANT.get(module, frozenset())
                found |= {alias.name for alias in node.names} & STRICT_READERS.get(module, frozenset())
    return frozenset(found)


@pytest.fixture(scope="module")
def readers() -> dict[str, frozenset[str]]:
    """Module -> the functions that read which it names."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): names for path in paths if (names := names_read(path))}


def test_each_module_that_reads_is_known(readers):
    known = BETWEEN_BUILDS.keys() | WITHIN_ONE_BUILD.keys()
    assert readers.keys() - known == set(), "reads JSON: add it to a table, and what it reads to next_build.CHANNELS"
    assert known - readers.keys() == set(), "reads nothing any more"
    assert not BETWEEN_BUILDS.keys() & WITHIN_ONE_BUILD.keys()


@pytest.mark.parametrize("module", BETWEEN_BUILDS)
def test_what_another_build_may_have_written_is_read_with_tolerance(module, readers):
    assert not readers[module] & STRICT


def test_the_next_build_extends_each_channel_that_a_module_reads():
    assert frozenset().union(*BETWEEN_BUILDS.values()) | NOT_READ_AS_JSON == CHANNELS
