"""Authorization of every endpoint.

Each endpoint names its action by `may(...)`, which answers 403, or 404 if the principal may not see the model. Its
route (`ipnext.api.requests.guarded_route`) checks that before it reads the body, too.
"""

from collections.abc import Mapping
from typing import Any

import anyio
from fastapi import Depends, Request

from ipnext.access.actions import ACTIONS, Action
from ipnext.access.policy import Resource
from ipnext.api.authorization.access import Access, Permission
from ipnext.api.authorization.caller import act, principal_of
from ipnext.errors import NotFound
from ipnext.model.access.rights import Principal
from ipnext.store.repository import Repository


def _target(action: Action, path: Mapping[str, str]) -> tuple[str, str]:
    """Return kind and name of a request's object from its path. Endpoints may be more precise."""
    if "change_id" in path:
        return "Change", path["change_id"]
    named = {"Model": "name", "Owner": "owner"}.get(action.kind, "region")
    return action.kind, path.get(named, "")


def may(name: str, *, only_reads: bool = False) -> Any:
    """Make the dependency of an endpoint that checks an action, on the model, change or region of the path.

    `only_reads`: a POST that changes nothing, so that the audit has no entry of it.
    """
    action = ACTIONS[name]

    async def check(request: Request) -> None:
        if getattr(request.state, "permitted", None) is check:  # its route checked before it read the body
            return
        access: Access = request.app.state.platform.access
        path = request.path_params
        kind, about = _target(action, path)
        acting = act(request, action=action.name, kind=kind, name=about, model=path.get("name", "") if of_model else "")
        acting.trail.only_reads = only_reads
        if of_model and ("name" in path or "change_id" in path):
            found = await anyio.to_thread.run_sync(_check_model, request, access, action)
            acting.trail.checks.append(lambda who, unit: _model_permission(access, who, action, path, unit)._asdict())
        else:
            found = _shared_permission(access, acting.principal, action, path)
            acting.trail.checks.append(lambda who, _: _shared_permission(access, who, action, path)._asdict())
        act(request, **found._asdict())
        request.state.permitted = check

    of_model = action.kind == "Model"

    check.__name__ = f"may_{name.replace('.', '_')}"
    check.action = action  # type: ignore[attr-defined]
    return Depends(check)


def may_read_plan() -> Any:
    """Make the dependency that checks reading the plan of the path.

    The plan of one model is read like the model, that of the fleet like the fleet.
    """
    return Depends(_check_plan)


def _check_plan(request: Request) -> None:
    access: Access = request.app.state.platform.access
    principal, plan_id = principal_of(request), request.path_params["plan_id"]
    if access.sees_all(principal):
        return
    with request.app.state.platform.store.read() as unit:
        known, model = unit.scope_of_plan(plan_id)
        owner = unit.owner_of(model or "")
    if known and model is None:
        access.check(principal, "plans.read", Resource("Plan", plan_id))
    elif not access.is_seen(principal, owner):
        msg = f"no plan has the id {plan_id!r}"
        raise NotFound(msg)


_check_plan.action = ACTIONS["plans.read"]  # type: ignore[attr-defined]


def _check_model(request: Request, access: Access, action: Action) -> Permission:
    path, principal = request.path_params, principal_of(request)
    with request.app.state.platform.store.read() as unit:
        name = path.get("name", "")
        if action.name == "models.apply" and not access.is_seen(principal, unit.owner_of(name)):
            return Permission(access.check_new(principal, action), name)  # the unit that writes says whose it is
        return _model_permission(access, principal, action, path, unit)


def _model_permission(
    access: Access, principal: Principal, action: Action, path: Mapping[str, str], unit: Repository
) -> Permission:
    """Permit an action on the model, or the change, of a path, as it is in a unit of work.

    Raises NotFound or Forbidden.
    """
    name = path.get("name") or _model_of_change(access, principal, unit, path["change_id"])
    if name is None:
        return Permission(action.policy)  # the endpoint answers that there is no such change
    if action.name == "models.apply" and unit.owner_of(name) is None:
        return Permission(access.check_new(principal, action), name)
    return access.check_model(principal, action, unit, name)


def _shared_permission(access: Access, principal: Principal, action: Action, path: Mapping[str, str]) -> Permission:
    """Permit an action on an owner or region of a path, on a list, or on an object that all owners share."""
    if action.kind == "Owner" and "owner" in path:
        return access.check_own(principal, action, path["owner"])
    if action.kind in {"Model", "Owner"}:
        return Permission(access.check_list(principal, action))
    return Permission(access.check(principal, action.name, Resource(action.kind, path.get("region", ""))))


def _model_of_change(access: Access, principal: Principal, unit: Repository, change_id: str) -> str | None:
    """Return the model of a change. NotFound if it is missing, and in the same words if it is of another owner's model.

    Both need the same queries of the store, so that timing does not distinguish them either. None if it is missing and
    nothing is hidden from the principal.
    """
    change = unit.find_change(change_id)
    if change is None and access.sees_all(principal):
        return None
    owner = unit.owner_of("" if change is None else change.model)
    if change is None or not access.is_seen(principal, owner):
        msg = f"no change has the id {change_id!r}"
        raise NotFound(msg)
    return change.model
