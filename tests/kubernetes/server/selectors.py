"""Label and field selectors, as requests and objects write them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.kubernetes.server.errors import Json, bad_request

FIELDS = ("metadata.name", "metadata.namespace")
FIELDS_OF = {
    "Event": (
        *("involvedObject.apiVersion", "involvedObject.fieldPath", "involvedObject.kind", "involvedObject.name"),
        *("involvedObject.namespace", "involvedObject.resourceVersion", "involvedObject.uid"),
        *("reason", "reportingComponent", "source", "type"),
    ),
    "Namespace": ("status.phase",),
    "Node": ("spec.unschedulable",),
    "Pod": (
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork"),
        *("status.phase", "status.podIP", "status.nominatedNodeName"),
    ),
    "Secret": ("type",),
    "Service": ("spec.clusterIP", "spec.type"),
}
"""Fields of a kind beside these that a selector may name."""
Matcher = Callable[[Json], bool]
SETS = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^)]*)\)\s*$")
EQUALS = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s!=,()]*)\s*$")
EXISTS = re.compile(r"^\s*(?P<absent>!?)\s*(?P<key>[^\s!=,()]+)\s*$")
OUTSIDE_BRACKETS = re.compile(r",(?![^(]*\))")


def parse_labels(text: str) -> Matcher:
    """Return the matcher of `labelSelector`. ApiFailure 400 if it is none."""
    terms = [_label_term(each) for each in OUTSIDE_BRACKETS.split(text) if each.strip()]
    return lambda obj: all(term(labels_of(obj)) for term in terms)


def _label_term(text: str) -> Callable[[Mapping[str, str]], bool]:
    if found := SETS.match(text):
        return _requirement(found["key"], found["operator"], [each.strip() for each in found["values"].split(",")])
    if found := EQUALS.match(text):
        return _requirement(found["key"], "notin" if found["operator"] == "!=" else "in", [found["value"]])
    if found := EXISTS.match(text):
        return _requirement(found["key"], "doesnotexist" if found["absent"] else "exists", [])
    raise bad_request(f"unable to parse the label selector {text!r}")


def _requirement(key: str, operator: str, values: list[str]) -> Callable[[Mapping[str, str]], bool]:
    return {
        "in": lambda labels: labels.get(key) in values,
        "notin": lambda labels: labels.get(key) not in values,
        "exists": lambda labels: key in labels,
        "doesnotexist": lambda labels: key not in labels,
    }[operator.lower()]


def labels_of(obj: Json) -> Mapping[str, str]:
    """Return the labels of an object."""
    found: Mapping[str, str] = obj.get("metadata", {}).get("labels") or {}
    return found


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Return whether a `LabelSelector` of an object matches; none matches nothing."""
    if selector is None:
        return False
    expressions = [
        _requirement(each["key"], each["operator"], each.get("values") or [])
        for each in selector.get("matchExpressions") or ()
    ]
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return equal and all(term(labels) for term in expressions)


def parse_fields(text: str, kind: str) -> Matcher:
    """Return the matcher of `fieldSelector`. ApiFailure 400 if it is none, or names a field that cannot be selected."""
    terms = [_field_term(each, (*FIELDS, *FIELDS_OF.get(kind, ()))) for each in text.split(",") if each.strip()]
    return lambda obj: all(term(obj) for term in terms)


def _field_term(text: str, known: tuple[str, ...]) -> Matcher:
    found = EQUALS.match(text)
    if not found:
        raise bad_request(f"unable to parse the field selector {text!r}")
    if found["key"] not in known:
        raise bad_request(f"{found['key']!r} is no field to select by: {', '.join(known)}")
    path, value, differs = found["key"].split("."), found["value"], found["operator"] == "!="
    return lambda obj: (_text_at(obj, path) == value) != differs


def _text_at(obj: Any, path: list[str]) -> str:
    for name in path:
        obj = obj.get(name) if isinstance(obj, dict) else None
    return "" if obj is None else str(obj).lower() if isinstance(obj, bool) else str(obj)
