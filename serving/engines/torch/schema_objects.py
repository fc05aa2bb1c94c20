"""Objects of torch's export schema from plain JSON values.

torch's own reader, `torch._export.serde.serialize._dict_to_dataclass`, resolves all type hints of a class again for
each value of it: 40 % of the time that it takes to read a program.
"""

from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch._export.serde import schema
from torch._export.serde.union import _Union


def build_object(kind: Any, value: Any) -> Any:
    """Build a value of a type of the schema, as torch does.

    Fields that the schema does not have are ignored. AttributeError, LookupError, TypeError or ValueError for a value
    of another form.
    """
    found: Any = kind
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return None if value is None else build_object(arguments[0], value)
    if origin is list:
        return [build_object(arguments[0], item) for item in value]
    if origin is dict:
        return {key: build_object(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, _Union):
        ((name, item),) = value.items()
        return found.create(**{name: build_object(_fields(found)[name], item)})
    if is_dataclass(kind):
        fields = _fields(found)
        return found(**{name: build_object(hint, value[name]) for name, hint in fields.items() if name in value})
    return float(value) if kind is float else value


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, globalns=vars(schema))
