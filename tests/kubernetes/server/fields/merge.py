"""Merging an applied configuration into an object."""

from typing import Any

from tests.kubernetes.server.fields.field_sets import is_granular_list, is_granular_map
from tests.kubernetes.server.schema.schema import Schema


def merged(live: Any, config: Any, schema: Schema) -> Any:
    """Return `live` with the values of `config`: field by field, items of granular lists by their keys."""
    if is_granular_map(config, schema) and isinstance(live, dict):
        fields = {name: merged(live.get(name), each, schema.field(name)) for name, each in config.items()}
        return {**live, **fields}
    if is_granular_list(config, schema) and isinstance(live, list):
        return _merged_items(live, config, schema)
    return config


def _merged_items(live: list[Any], config: list[Any], schema: Schema) -> list[Any]:
    wanted = {schema.item_key(each): each for each in config}
    items = {schema.item_key(each): each for each in live}
    kept = {key: merged(each, wanted[key], schema.items) if key in wanted else each for key, each in items.items()}
    return list((kept | {key: each for key, each in wanted.items() if key not in items}).values())
