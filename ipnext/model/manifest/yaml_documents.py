"""Reads YAML written by a person, with unique keys in each mapping: PyYAML silently takes the last of two."""

from typing import Any, Final

import yaml

from ipnext.errors import InvalidInput

NOT_YAML: Final = (yaml.YAMLError, ValueError, RecursionError)
"""Errors of PyYAML: ValueError for an invalid date or number, RecursionError for too deep nesting."""


def read_documents(text: str) -> tuple[Any, ...]:
    """Return every document of a text. Raises InvalidInput, for a duplicate key with its name and lines."""
    try:
        return tuple(yaml.load_all(text, Loader=_Loader))
    except NOT_YAML as error:
        msg = f"not YAML: {error}"
        raise InvalidInput(msg) from error


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a duplicate key, before merge keys (`<<`) are resolved: those may be overridden.

        Raises InvalidInput.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            first = lines.get((key.tag, key.value))
            lines[key.tag, key.value] = line
            if first is not None:
                msg = f"{key.value}: is given twice in one mapping, in lines {first} and {line}; allowed: once"
                raise InvalidInput(msg, field=key.value)
        return node
