"""docs/reference and the code name the same things."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from ipnext import errors
from ipnext.access.actions import ACTIONS
from ipnext.api.app import create_app
from ipnext.api.errors import HTTP_CODES
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.cli.app import GROUPS, MODULES
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.lifecycle.reasons import ADVICE, ADVICE_FOR_MOVES
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store
from tests.ipnext.api.surface import routes

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def text_of(name):
    return (REFERENCE / name).read_text(encoding="utf-8")


def headings(name, level):
    return re.findall(rf"^{'#' * level} (.+)$", text_of(name), flags=re.MULTILINE)


@pytest.fixture
def application(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/unused.db")
    rooms = (store, FileArtifactStore(tmp_path), MemoryInfrastructure([]), MemoryLifecycle(), PlatformSettings())
    yield create_app(*rooms)
    store.close()


@pytest.fixture
def schema(application):
    return application.openapi()


def test_every_endpoint_has_a_heading_and_no_heading_is_made_up(schema):
    endpoints = {f"{method.upper()} {path}" for path, found in schema["paths"].items() for method in found}
    assert sorted(headings("api.md", 3)) == sorted(endpoints)


def test_every_command_has_a_heading_and_no_heading_is_made_up():
    commands = {f"ipnext {c.name}" for module in MODULES for c in module.COMMANDS}
    commands |= {f"ipnext {module.GROUP.info.name} {c.name}" for module in GROUPS for c in module.COMMANDS}
    assert sorted(headings("cli.md", 2)) == sorted({*commands, "Plug-ins"})


def test_every_option_of_a_command_is_an_option_of_its_code():
    from typer.main import get_command  # noqa: PLC0415

    from ipnext.cli import app  # noqa: PLC0415

    group = get_command(app)
    sections = re.split(r"^## ", text_of("cli.md"), flags=re.MULTILINE)
    for section in sections:
        name = section.split("\n", 1)[0].removeprefix("ipnext ")
        first, _, second = name.partition(" ")
        if first in group.commands:
            command = group.commands[first].commands[second] if second else group.commands[first]
            real = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section)) <= real, name


def test_every_reason_has_a_heading_with_its_advice():
    assert headings("reasons.md", 2) == [reason.value for reason in Reason]
    for reason in Reason:
        assert ADVICE[reason] in text_of("reasons.md")
        assert ADVICE_FOR_MOVES.get(reason, "") in text_of("reasons.md")
    for condition in ConditionType:
        assert f"`{condition.value}`" in text_of("reasons.md")


def names_of_reasons(path):
    """Reasons that a module names: `Reason.NAME`, or its text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
            yield node.attr
        elif isinstance(node, ast.Constant) and node.value in {reason.value for reason in Reason}:
            yield Reason(node.value).name


def test_every_reason_of_the_code_is_in_the_catalogue_and_each_of_the_catalogue_is_given_by_the_code():
    root = REFERENCE.parents[1]
    catalogue = {"ipnext/model/lifecycle/status.py", "ipnext/model/lifecycle/reasons.py"}
    modules = (path for of in ("ipnext", "activities", "workflows", "planner") for path in (root / of).rglob("*.py"))
    given = {
        name
        for path in modules
        if str(path.relative_to(root)) not in catalogue
        for name in names_of_reasons(path)
        if name in Reason.__members__
    }
    assert set(ADVICE) == set(Reason)
    assert given == {reason.name for reason in ADVICE}


def test_a_condition_can_have_no_reason_outside_of_the_catalogue():
    with pytest.raises(ValidationError, match="reason"):
        Condition(type=ConditionType.SERVING, status="True", reason="Tired", last_transition_time=datetime.now(UTC))


def test_every_error_code_has_a_heading_with_its_status():
    kinds = [errors.IPnextError]
    for kind in kinds:
        kinds.extend(k for k in kind.__subclasses__() if k.__module__ == errors.__name__)
    documented = headings("errors.md", 2)
    assert sorted(documented) == sorted({*(kind.code for kind in kinds), *HTTP_CODES.values()})
    sections = dict(part.split("\n", 1) for part in re.split(r"^## ", text_of("errors.md"), flags=re.MULTILINE)[1:])
    for kind in kinds:
        first = f"HTTP {kind.http_status}, exit status {kind.exit_status}"
        assert first + (", retryable" if kind.retryable else "") in sections[kind.code], kind.code


def test_every_metric_is_named(tmp_path):
    api = REFERENCE.parents[1] / "ipnext" / "api" / "metrics"
    source = "".join((api / name).read_text(encoding="utf-8") for name in ("endpoint.py", "planning.py"))
    found = re.findall(r'\b(?:gauge|counter)\(\s*"([a-z_]+)"', source)
    assert len(found) > 20
    for name in found:
        assert f"`ipnext_{name}`" in text_of("api.md"), name


def test_every_setting_of_planning_is_named_with_its_default():
    text = (REFERENCE.parent / "lifecycle.md").read_text(encoding="utf-8")
    fields = PlatformSettings.model_fields
    planning = list(fields)[list(fields).index("move_cost") :]
    for name in planning:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `IPNEXT_{name.upper()}` |")]
        default = fields[name].default
        shown = "true" if default is True else "" if default is None else f"{default:g}"
        assert f"| {shown}" in line, name


def test_the_table_of_actions_is_that_of_the_code(application):
    rows = re.findall(
        r"^\| `([a-z]+\.[a-z]+)` \| (\w+) \| (\w+) \| (.+?) \| (.+?) \|$", text_of("../access.md"), flags=re.MULTILINE
    )
    guarded = {"models.predict": {"predictions at the gateways"}}
    for method, path, actions in routes(application):
        for action in actions:
            guarded.setdefault(action.name, set()).add(f"`{method} {path}`")
    expected = {a.name: (a.role.value, a.kind, a.about, guarded[a.name]) for a in ACTIONS.values()}
    assert {name: (role, kind, about, set(paths.split(", "))) for name, role, kind, about, paths in rows} == expected
