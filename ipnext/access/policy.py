"""Decides by Cedar policies whether a principal may act. A policy that forbids overrides all that permit."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import cedarpy

from ipnext.access.actions import ACTIONS, POLICIES, Action
from ipnext.errors import Forbidden, InvalidInput, NotFound
from ipnext.model.access.rights import ANY, Grant, Principal, Role

BUILT_IN: Final = Path(__file__).with_name("policies.cedar")
REMEMBERED: Final = 16_384
"""Cached decisions; each is a function of its arguments alone."""

UNNAMED: Final = "-"


class Resource(NamedTuple):
    """Object of an action: `owner` of a Model, `name` of a Model or Region.

    `callers` of a Model: further owners whose principals may request predictions.
    """

    kind: str
    name: str = ""
    owner: str = ""
    callers: tuple[str, ...] = ()


class Decision(NamedTuple):
    """Whether an action is allowed, and the policy that decided."""

    allowed: bool
    policy: str


class Policies:
    """The built-in policies and those of the operator."""

    def __init__(self, more: str = "") -> None:
        """`more` is Cedar text of the operator, added to the built-in policies.

        InvalidInput if it is invalid, or lacks `@id`.
        """
        try:
            _check(more)
            self._policies = cedarpy.PolicySet.from_str(BUILT_IN.read_text(encoding="utf-8") + "\n" + more)
        except ValueError as error:
            msg = f"policies_file (IPNEXT_POLICIES_FILE): not Cedar: {error}"
            raise InvalidInput(msg, field="policies_file") from error
        self.has_own = bool(more.strip())
        """Whether the operator added policies, which may forbid actions that roles permit."""
        self._decide = functools.lru_cache(REMEMBERED)(self._evaluate)

    def decide(self, principal: Principal, action: Action, resource: Resource) -> Decision:
        """Decide by the policies alone, without raising."""
        return self._decide(principal, action, resource)

    def check(self, principal: Principal, action: Action, resource: Resource) -> Decision:
        """Return the permission. Forbidden names the action, the role that it needs and the policy."""
        decision = self.decide(principal, action, resource)
        if decision.allowed:
            return decision
        of = f" of owner {resource.owner!r}" if resource.owner else f" {resource.name!r}" if resource.name else ""
        msg = (
            f"{principal.text} may not {action.about} ({action.name}): it needs role {action.role.value} for the "
            f"{resource.kind.lower()}{of}; policy {decision.policy!r} decides"
        )
        raise Forbidden(msg, policy=decision.policy)

    def visible_owners(self, principal: Principal, owners: Iterable[str]) -> frozenset[str]:
        """Return those of these owners whose models the principal may read."""
        read = ACTIONS["models.read"]
        return frozenset(
            owner for owner in owners if self.decide(principal, read, Resource("Model", owner=owner)).allowed
        )

    def _evaluate(self, principal: Principal, action: Action, resource: Resource) -> Decision:
        uid = _uid(principal)
        request = {
            "principal": uid,
            "action": {"type": "Action", "id": action.name},
            "resource": {"type": resource.kind, "id": resource.name or resource.owner or ANY},
            "context": {},
        }
        found = cedarpy.is_authorized(request, self._policies, _entities(uid, principal, action, resource))
        names = _name_policies(found.diagnostics)
        return Decision(found.allowed, names or action.policy)


def permits_more(text: str) -> bool:
    """Return whether the operator's policies may permit what no role does. True if that can't be told."""
    if not text.strip():
        return False
    try:
        found = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError:
        return True
    policies = (*found.get("staticPolicies", {}).values(), *found.get("templates", {}).values())
    return any(policy.get("effect") != "forbid" for policy in policies)


def schema() -> str:
    """Return the types, attributes and actions that policies may name, as a Cedar schema."""
    owners = ", ".join(f"{role.value}: Set<String>" for role in Role)
    kinds = ", ".join(sorted({action.kind for action in ACTIONS.values()}))
    lines = [
        (
            f"entity Key, User, Local = {{ name: String, {owners}, viewed_regions: Set<String>, operated_regions: "
            "Set<String> };"
        ),
        f"entity {kinds} = {{ name: String, owner: String, callers: Set<String> }};",
        f"action {', '.join(role.value for role in Role)};",
    ]
    applies = "appliesTo {{ principal: [Key, User, Local], resource: [{0}] }};"
    lines += [f'action "{a.name}" in [{a.role.value}] {applies.format(a.kind)}' for a in ACTIONS.values()]
    return "\n".join(lines)


def _check(text: str) -> None:
    """Refuse policies with unknown names or without a name. ValueError if they are no Cedar; InvalidInput."""
    faults = cedarpy.validate_policies(text, schema()).errors if text.strip() else []
    if faults:
        msg = (
            f"policies_file (IPNEXT_POLICIES_FILE): {faults[0].error}; docs/access.md names types, "
            "attributes and actions"
        )
        raise InvalidInput(msg, field="policies_file")
    found = json.loads(cedarpy.policies_to_json_str(text)) if text.strip() else {}
    taken = set(POLICIES.values())
    for policy in found.get("staticPolicies", {}).values():
        name = policy.get("annotations", {}).get("id")
        if not name or name in taken:
            msg = (
                f"policies_file (IPNEXT_POLICIES_FILE): each policy needs an @id of its own, got {name!r}; "
                "answers name it"
            )
            raise InvalidInput(msg, field="policies_file", value=name)
        taken.add(name)


def policies_of(file: Path | None) -> Policies:
    """Return the policies with those of a file. Raises InvalidInput or NotFound."""
    if file is None:
        return Policies()
    try:
        return Policies(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"policies_file (IPNEXT_POLICIES_FILE): {file} can't be read: {error.strerror}"
        raise NotFound(msg) from error


def _uid(principal: Principal) -> dict[str, str]:
    """Return the Cedar id of a principal.

    A session or a ticket counts as its key, so that policies against the key apply to them.
    """
    if principal.kind in {"session", "ticket"}:
        return {"type": "Key", "id": principal.acts_for}
    return {"type": principal.kind.capitalize(), "id": principal.id}


def _name_policies(diagnostics: Any) -> str:
    ids: Mapping[str, str] = diagnostics.id_annotations_by_reason or {}
    return ", ".join(sorted(ids.get(reason) or reason for reason in diagnostics.reasons))


def _entities(uid: Mapping[str, str], principal: Principal, action: Action, resource: Resource) -> list[dict[str, Any]]:
    of_resource = {"type": resource.kind, "id": resource.name or resource.owner or ANY}
    parents = [{"type": "Action", "id": role.value} for role in Role if role is action.role]
    of_its_own = {"name": resource.name, "owner": resource.owner, "callers": list(resource.callers)}
    return [
        {"uid": uid, "attrs": {"name": principal.name, **_attributes(principal.grants)}, "parents": []},
        {"uid": {"type": "Action", "id": action.name}, "attrs": {}, "parents": parents},
        {"uid": of_resource, "attrs": of_its_own, "parents": []},
    ]


def _attributes(grants: Sequence[Grant]) -> Mapping[str, list[str]]:
    """Return the owners at each role or a higher one, and the regions that may be read and operated."""
    everywhere = [grant for grant in grants if grant.region == ANY]
    owners = {
        role.value: sorted({grant.owner for grant in everywhere if grant.role.rank >= role.rank}) for role in Role
    }
    operated = {grant.region for grant in grants if grant.role.rank >= Role.OPERATOR.rank and grant.owner == ANY}
    viewed = {grant.region for grant in grants if grant.role.rank >= Role.VIEWER.rank}
    return {**owners, "viewed_regions": sorted(viewed), "operated_regions": sorted(operated)}
