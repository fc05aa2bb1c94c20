"""JSON merge patches, JSON patches and strategic merge patches."""

from typing import Any

import jsonpatch
import jsonpointer

from tests.kubernetes.server.errors import bad_request, invalid
from tests.kubernetes.server.schema.schema import Json, Schema

DIRECTIVE, DELETE_LIST, KEEP = "$patch", "$deleteFromPrimitiveList/", "$retainKeys"


def merge_patched(value: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    base = value if isinstance(value, dict) else {}
    changed = {name: merge_patched(base.get(name), each) for name, each in patch.items() if each is not None}
    return {name: each for name, each in base.items() if name not in patch} | changed


def json_patched(value: Json, operations: Any) -> Json:
    """Apply a JSON patch (RFC 6902). ApiFailure if an operation has no target or a test fails."""
    try:
        result: Json = jsonpatch.apply_patch(value, operations)
    except (jsonpatch.JsonPatchTestFailed, jsonpatch.JsonPatchConflict, jsonpointer.JsonPointerException) as error:
        raise invalid("patch", "", [("", f"the patch does not apply: {error}")]) from error
    except (jsonpatch.InvalidJsonPatch, TypeError) as error:
        raise bad_request(f"not a JSON patch: {error}") from error
    return result


def strategic_patched(value: Any, patch: Any, schema: Schema) -> Any:
    """Apply a strategic merge patch: lists with a merge key by that key, with the directive `$patch`."""
    if isinstance(patch, dict):
        return _patched_map(value if isinstance(value, dict) else {}, patch, schema)
    if isinstance(patch, list) and isinstance(value, list) and schema.patch_key:
        return _patched_list(value, patch, schema)
    if isinstance(patch, list) and isinstance(value, list) and schema.merges_as_set:
        return [*value, *(each for each in patch if each not in value)]
    if isinstance(patch, list):
        return [_without_directive(each) for each in patch if not _deletes(each)]
    return patch


def _patched_map(value: Json, patch: Json, schema: Schema) -> Json | None:
    if patch.get(DIRECTIVE) == "replace":
        replaced: Json = _without_directive(patch)
        return replaced
    if patch.get(DIRECTIVE) == "delete":
        return None
    result = dict(value)
    if KEEP in patch:
        result = {name: each for name, each in result.items() if name in patch[KEEP]}
    for name, each in patch.items():
        if name.startswith(DELETE_LIST):
            field = name.removeprefix(DELETE_LIST)
            result[field] = [item for item in result.get(field, []) if item not in each]
        elif not name.startswith("$"):
            changed = None if each is None else strategic_patched(result.get(name), each, schema.field(name))
            result |= {name: changed}
    return {name: each for name, each in result.items() if each is not None}


def _patched_list(value: list[Any], patch: list[Any], schema: Schema) -> list[Any]:
    key = schema.patch_key
    if any(each == {DIRECTIVE: "replace"} for each in patch):
        return [each for each in patch if each != {DIRECTIVE: "replace"}]
    items = {each.get(key): each for each in value}
    for each in patch:
        if key not in each:
            raise bad_request(f"an item of a list lacks its merge key {key}")
        if _deletes(each):
            items.pop(each[key], None)
        else:
            items[each[key]] = strategic_patched(items.get(each[key]), each, schema.items)
    return list(items.values())


def _deletes(item: Any) -> bool:
    return isinstance(item, dict) and item.get(DIRECTIVE) == "delete"


def _without_directive(item: Any) -> Any:
    return {name: each for name, each in item.items() if name != DIRECTIVE} if isinstance(item, dict) else item
