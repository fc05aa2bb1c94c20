"""docs/access.md says which actions each command, the page and Temporal's entry points need.

Their requests show the same.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from temporalio.workflow import _Definition
from typer.testing import CliRunner

from ipnext.access.actions import ACTIONS, Action
from ipnext.api.authorization.access import Access
from ipnext.api.routes.page import page
from ipnext.cli import app
from ipnext.cli.app import GROUPS, MODULES
from ipnext.cli.commands import prediction
from ipnext.cli.commands.registry import profiles
from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.registry.profile import LatencyTarget, Profile
from tests.ipnext.api.routes.models.registry.test_profiles import profile
from tests.ipnext.api.surface import OWNER, freeze_document, routes, seed_two_owners
from tests.ipnext.conftest import Live
from workflows.worker import WORKFLOWS

PAGE = Path(__file__).parents[3] / "docs" / "access.md"

NOT_OF_THE_API = {
    "dev",
    "import-checkpoint",
    "keygen",
    "platform admin-key",
    "platform builds",
    "platform check",
    "render",
    "platform promote",
    "platform setup",
    "sign",
    "version",
}
"""Commands that send the API nothing."""

LISTS = (
    "models",
    "changes",
    "plans",
    "replans",
    "regions",
    "drains",
    "fleet",
    "freezes",
    "denials",
    "holds",
    "owners",
    "sources",
    "stages",
    "validators",
)

COMMANDS = {
    "lineage": ["lineage ranker", "lineage ranker dense 1"],
    "snapshot hold": ["snapshot hold ranker dense 1 --reason audit"],
    "snapshot unhold": ["snapshot unhold ranker dense 1"],
    "snapshot delete": ["snapshot delete ranker dense 1"],
    "source pause": ["source pause ranker feed"],
    "source resume": ["source pause ranker feed", "source resume ranker feed"],
    "source poll": ["source poll ranker feed"],
    "source push": ["source push ranker feed {snapshot}"],
    "apply": [
        "apply -f {fleet}",
        "apply -f {model}",
        "apply -f {owner}",
        "apply -f {freeze}",
        "apply --dry-run -f {model}",
    ],
    "publish": [
        "publish ranker --part sparse={snapshot} --part dense={snapshot}",
        "publish ranker --part sparse={other} --part dense={other} --override-freeze --reason sale",
    ],
    "rollback": ["rollback ranker"],
    "repair": ["repair ranker"],
    "replan": [
        "replan",
        "replan --dry-run --timeout 0",
        *(f"replan {action}" for action in ("status", "pause", "resume", "cancel")),
    ],
    "wait": ["wait ranker --timeout 0", "wait ranker --for change={change} --timeout 0"],
    "delete": ["delete owner nobody", "delete ranker"],
    **{verb: [f"{verb} ranker"] for verb in ("pause", "resume", "approve", "promote", "abort")},
    "freeze": ["freeze ranker --reason sale --until 1h", "freeze ranker* --reason sale --until 1h --name sales"],
    "unfreeze": ["unfreeze hold-ads"],
    "override": ["override {change} --reason sale"],
    "deny": [f"deny {'c' * 64} --reason poisoned"],
    "undeny": [f"deny {'c' * 64} --reason poisoned", f"undeny {'c' * 64}"],
    "drain": ["drain eu --wait --timeout 0"],
    "undrain": ["undrain eu --wait --timeout 0"],
    "get": [
        *(f"get {kind}" for kind in LISTS),
        *(f"get {kind} --model ranker" for kind in ("snapshots", "generations", "changes")),
    ],
    "describe": [
        "describe ranker",
        "describe freeze hold-both",
        f"describe denial {'d' * 64}",
        "describe owner search",
        "describe report ranker 1",
        "describe change {change}",
        "describe plan plan-1",
        "describe replan r0",
        "describe snapshot ranker dense 1",
        "describe source ranker feed",
    ],
    "events": ["events ranker"],
    "explain": ["explain ranker"],
    "logs": ["logs ranker"],
    "predict": ["predict ranker -f {request} --region eu"],
    "profile": ["profile ranker"],
    "login": ["login"],
    "logout": ["logout"],
    "whoami": ["whoami"],
    "page": ["page"],
    "keys create": ["keys create ci --role viewer"],
    "keys list": ["keys list"],
    "keys revoke": ["keys revoke {key}", "keys revoke {key} --wait --timeout 0"],
    "roles grant": ["roles grant user:ann --role viewer"],
    "roles list": ["roles list"],
    "roles revoke": ["roles revoke {key}"],
    "audit list": ["audit list"],
    "audit verify": ["audit verify"],
    "audit export": ["audit export"],
    "audit head": ["audit head"],
    "artifacts collect": ["artifacts collect --dry-run", "artifacts collect"],
}
"""Command -> calls of it that together send all kinds of requests that it can send."""


def table(heading: str) -> dict[str, list[str]]:
    """First cell (in backquotes) -> the words in backquotes of the last cell, of the table below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = (line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `"))
    return {re.findall("`(.+?)`", first)[0]: re.findall("`(.+?)`", last) for first, *_, last in rows}


@pytest.fixture
def decided(switchboard: Any, live: Live, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Actions of the endpoints that were called, and those decided within them, since the set was cleared."""
    names: set[str] = set()
    served = switchboard._app
    forms = [(method, re.sub(r"\{\w+\}", "[^/]+", path), actions) for method, path, actions in routes(served)]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        fitting = [one for one in forms if scope["method"] == one[0] and re.fullmatch(one[1], scope["path"])]
        assert fitting, scope["path"]
        _, _, actions = min(fitting, key=lambda one: one[1].count("[^/]+"))
        names.update(action.name for action in actions)
        await served(scope, receive, send)

    monkeypatch.setattr(switchboard, "_app", answer)

    def recording(check: Callable[..., Any]) -> Callable[..., Any]:
        def record(self: Access, principal: Any, action: Action | str, *rest: Any) -> Any:
            names.add(action if isinstance(action, str) else action.name)
            return check(self, principal, action, *rest)

        return record

    for name in ("check", "check_list", "check_new", "check_model", "check_own", "check_owner"):
        monkeypatch.setattr(Access, name, recording(getattr(Access, name)))
    return names


@pytest.fixture
def names(rooms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Live) -> dict[str, str]:
    """What stands for the names in braces, with a model, a plan, a replan, two freezes and a key to ask about."""
    seed_two_owners(rooms)
    with rooms.store.begin() as unit:
        unit.add_replan("r0", "schedule")
        unit.save_report(ValidationReport(model="ranker", generation=1, checks=()))
    documents = {
        "fleet": rooms.fleet_document(),
        "model": rooms.model_document(),
        "owner": OWNER,
        "freeze": freeze_document("other", ["ranker"]),
    }
    files = {}
    for name, document in documents.items():
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(document), encoding="utf-8")
    files["request"] = tmp_path / "request.json"
    files["request"].write_text("{}", encoding="utf-8")
    files["snapshot"] = tmp_path / "snapshot"
    files["other"] = tmp_path / "other"
    for name in ("snapshot", "other"):
        rooms.write_snapshot(files[name], name.encode())
    with rooms.store.read() as unit:
        change = unit.changes("ranker", limit=1)[0].id
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    monkeypatch.setenv("IPNEXT_GATEWAYS", "{}")
    monkeypatch.setenv("IPNEXT_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    key = rooms.add_key("other", Role.VIEWER)
    return {name: str(file) for name, file in files.items()} | {
        "change": change,
        "key": key.partition(".")[0].removeprefix("ipnext_"),
    }


def test_the_table_names_every_command():
    commands = {c.name for module in MODULES for c in module.COMMANDS}
    commands |= {f"{module.GROUP.info.name} {c.name}" for module in GROUPS for c in module.COMMANDS}
    assert commands == set(COMMANDS) | NOT_OF_THE_API
    assert {f"ipnext {name}" for name in commands} == set(table("Every command"))


def test_each_command_asks_for_the_actions_of_the_table_and_no_others(decided, names, monkeypatch):
    subject = SimpleNamespace(part="dense", snapshot=1, target=LatencyTarget(), embedding=False)
    monkeypatch.setattr(profiles, "subject_of", lambda *_, **__: subject)
    monkeypatch.setattr(profiles, "_measure_profile", lambda *_: Profile.model_validate(profile(100.0)))
    gateways: set[str] = set()

    def ask_gateway(url: str, **_: Any) -> httpx.Response:
        gateways.add(url)
        return httpx.Response(403, json={"error": "asked"})

    monkeypatch.setattr(prediction.httpx, "post", ask_gateway)
    found = {}
    for command, calls in COMMANDS.items():
        for words in calls:
            answer = CliRunner().invoke(app, words.format(**names).split(), prog_name="ipnext")
            assert answer.exception is None or isinstance(answer.exception, SystemExit), (words, answer.exception)
            assert "Usage:" not in answer.output, answer.output
        found[f"ipnext {command}"] = sorted(decided)
        decided.clear()
    assert gateways == {"http://eu.memory/v2/models/ranker/infer"}
    found["ipnext predict"].append("models.predict")  # of the gateway
    written = {command: sorted(actions) for command, actions in table("Every command").items()}
    assert found == {command: actions for command, actions in written.items() if command in found}


def test_the_roles_of_a_row_are_those_of_its_actions():
    for heading in ("Every command", "Every action of the page"):
        for first, actions in table(heading).items():
            roles = {ACTIONS[name].role.value for name in actions}
            (line,) = [
                line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{first}` |")
            ]
            assert not roles or roles == set(line.split(" | ")[1].split(", ")), line


def test_the_page_sends_the_requests_of_the_table_and_no_others(rooms):
    script = (page.WEB / "app.js").read_text(encoding="utf-8")
    sent = set(re.findall(r"[\"`](/v1/[a-z/]+)", script))
    written = table("Every action of the page")
    assert sent == set(written)
    actions = {path: {a.name for a in found} for _, path, found in routes(rooms.app()) if path in sent}
    assert {path: set(found) for path, found in written.items()} == actions


def test_the_table_names_every_workflow_and_every_way_to_speak_to_one():
    found = set()
    for workflow in WORKFLOWS:
        definition = _Definition.must_from_class(workflow)
        found |= {
            str(name) for name in (definition.name, *definition.signals, *definition.queries, *definition.updates)
        }
    written = table("Every entry point of Temporal")
    assert set(written) == found
    assert {action for actions in written.values() for action in actions} <= set(ACTIONS)
