"""How a router picks one of the engines of a generation: the setting `routing` of a part whose engine serves by itself."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.faults import fault_text
from ipnext.model.value import Written

RoutingPolicy = Literal["prefix", "least-loaded", "round-robin"]

ROUTING_SETTING: Final = "routing"


class RoutingSettings(Written):
    """Written as `routing: {policy: prefix}`."""

    policy: RoutingPolicy = "prefix"
    """`prefix`: the engine that has the session, or the beginning of the prompt, in its cache, unless others are far less
    busy; `least-loaded`; or `round-robin`."""


def routing_policy(settings: Mapping[str, Any]) -> RoutingPolicy | None:
    """What the settings of such a part say; None where they say nothing. InvalidInput names the field."""
    if ROUTING_SETTING not in settings:
        return None
    try:
        return RoutingSettings.model_validate(settings[ROUTING_SETTING]).policy
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(("settings", ROUTING_SETTING, *(str(step) for step in fault["loc"])))
        msg = f"{field}: {fault_text(fault)} (got {fault['input']!r:.100})"
        raise InvalidInput(msg, field=field, value=fault["input"]) from error


def host_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of such a part without what is the router's: another policy loads nothing anew."""
    return {name: value for name, value in settings.items() if name != ROUTING_SETTING}
