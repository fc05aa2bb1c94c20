"""Every action of the API, the role that it needs, and the kind of its object."""

from typing import Final, Literal, NamedTuple

from ipnext.model.access.rights import Role

Kind = Literal["Model", "Owner", "Plan", "Fleet", "Region", "Platform"]
"""Kind of an action's object. `Model`, `Owner`: one, or those of a list. `Plan`: of the whole fleet, with its
models. `Fleet`: objects that all models share. `Platform`: keys, roles and the audit."""


class Action(NamedTuple):
    """An action by its name, such as `models.publish`."""

    name: str
    role: Role
    kind: Kind
    about: str

    @property
    def policy(self) -> str:
        """Id of the built-in policy that permits the action."""
        return POLICIES[self.role, self.kind]


POLICIES: Final = {
    (Role.CALLER, "Model"): "callers-ask-models-of-their-owners",
    (Role.VIEWER, "Model"): "viewers-read-models-of-their-owners",
    (Role.PUBLISHER, "Model"): "publishers-change-models-of-their-owners",
    (Role.OPERATOR, "Model"): "operators-steer-models-of-their-owners",
    (Role.ADMIN, "Model"): "admins-do-everything",
    (Role.VIEWER, "Owner"): "viewers-read-their-owners",
    (Role.ADMIN, "Owner"): "admins-do-everything",
    (Role.VIEWER, "Plan"): "viewers-of-all-owners-read-plans",
    (Role.VIEWER, "Fleet"): "viewers-read-the-fleet",
    (Role.PUBLISHER, "Fleet"): "publishers-upload-artifacts",
    (Role.OPERATOR, "Fleet"): "operators-change-the-fleet",
    (Role.ADMIN, "Fleet"): "admins-do-everything",
    (Role.VIEWER, "Region"): "viewers-read-the-fleet",
    (Role.OPERATOR, "Region"): "operators-drain-their-regions",
    (Role.ADMIN, "Platform"): "admins-do-everything",
}
"""(role, kind) -> the policy of `policies.cedar` that permits such actions."""

_C, _V, _P, _O, _A = Role

_ALL: Final = (
    Action("models.predict", _C, "Model", "ask a model for predictions, at the gateways"),
    Action("models.list", _V, "Model", "list models; those of other owners are left out"),
    Action("models.read", _V, "Model", "read a model, its history, logs and explanation"),
    Action("models.apply", _P, "Model", "apply a model's manifest"),
    Action("models.publish", _P, "Model", "publish snapshots, and delete those that nothing needs"),
    Action("models.rollback", _P, "Model", "go back to a former generation"),
    Action("models.repair", _P, "Model", "bring the serving generation about again"),
    Action("models.retire", _P, "Model", "take a model out of service"),
    Action(
        "models.steer", _P, "Model", "pause, resume, approve, promote or abort a model's changes; hold its snapshots"
    ),
    Action("models.profile", _P, "Model", "record measurements of a snapshot"),
    Action("models.override", _O, "Model", "let a change through the freezes, or past a check of its validation"),
    Action("artifacts.upload", _P, "Fleet", "upload blobs and snapshots"),
    Action("denials.change", _A, "Platform", "deny digests, and end denials"),
    Action("artifacts.collect", _A, "Platform", "collect what retention lets go"),
    Action("fleet.read", _V, "Fleet", "read regions, supply, freezes, denials, replans, validators and stages"),
    Action("fleet.apply", _O, "Fleet", "apply the fleet's manifest"),
    Action("owners.read", _V, "Owner", "read owners, their members, quotas and usage; other owners are left out"),
    Action("owners.manage", _A, "Owner", "apply and delete owners"),
    Action("plans.read", _V, "Plan", "read plans of the whole fleet with their documents"),
    Action("replans.ask", _O, "Fleet", "plan the whole fleet again, and steer its moves"),
    Action("freezes.change", _O, "Fleet", "apply and lift freezes"),
    Action("regions.read", _V, "Region", "read a region's drains and the replicas of one's models"),
    Action("regions.drain", _O, "Region", "take a region out of service, and bring it back"),
    Action("runs.inspect", _A, "Platform", "read, start and end runs in Temporal's UI of `ipnext dev`"),
    Action("audit.read", _A, "Platform", "read the audit"),
    Action("keys.manage", _A, "Platform", "create, list and revoke API keys"),
    Action("roles.manage", _A, "Platform", "grant, list and revoke roles of people and groups"),
)

ACTIONS: Final = {action.name: action for action in _ALL}
"""Name -> action."""
