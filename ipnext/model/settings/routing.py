"""The router's choice of one of a generation's engines.

The setting `routing` of a part whose engine has its own server.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.validation_errors import fault_text, faults_of
from ipnext.model.value import WrittenValue

RoutingPolicy = Literal["prefix", "least-loaded", "round-robin"]

ROUTING_SETTING: Final = "routing"


class RoutingSettings(WrittenValue):
    """Written as `routing: {policy: prefix}`."""

    policy: RoutingPolicy = "prefix"
    """`prefix`: the engine that has the session, or the beginning of the prompt, in its cache, unless others are far
    less busy; `least-loaded`; or `round-robin`."""


def routing_policy(settings: Mapping[str, Any]) -> RoutingPolicy | None:
    """Return the policy in the settings of such a part; None if they have none.

    Raises:
        InvalidInput: it has the field's name.
    """
    if ROUTING_SETTING not in settings:
        return None
    try:
        return RoutingSettings.model_validate(settings[ROUTING_SETTING]).policy
    except ValidationError as error:
        fault = faults_of(error)[0]
        field = ".".join(("settings", ROUTING_SETTING, *(str(step) for step in fault["loc"])))
        msg = f"{field}: {fault_text(fault)} (got {fault['input']!r:.100})"
        raise InvalidInput(msg, field=field, value=fault["input"]) from error


def host_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of such a part without the router's: another policy causes no new load."""
    return {name: value for name, value in settings.items() if name != ROUTING_SETTING}
