"""The OpenAPI schema as one plain page: every endpoint, its parameters, bodies and answers. Pure: schema -> HTML."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]


def render_schema(schema: Schema) -> str:
    """Return a whole HTML page."""
    info = schema["info"]
    groups = _by_tag(schema)
    links = " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    sections = "".join(_group(tag, operations) for tag, operations in groups.items())
    types = "".join(_type(name, body) for name, body in sorted(schema.get("components", {}).get("schemas", {}).items()))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])} API</title><link rel="icon" href="/web/icon.svg"><link '
        'rel="stylesheet" href="/web/style.css"></head>'
        f'<body class="reference"><header><h1>{escape(info["title"])} API <small>{escape(info["version"])}</small></h1>'
        f'<nav aria-label="Sections">{links} · <a href="#types">types</a> · <a href="/openapi.json">openapi.json</a> · '
        f'<a href="/">page</a></nav></header><main>{_paragraphs(info.get("description", ""))}{sections}'
        f'<section id="types"><h2>types</h2>{types}</section></main></body></html>'
    )


def _by_tag(schema: Schema) -> Mapping[str, list[tuple[str, str, Schema]]]:
    groups: dict[str, list[tuple[str, str, Schema]]] = defaultdict(list)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            groups[(operation.get("tags") or ["other"])[0]].append((method.upper(), path, operation))
    return groups


def _group(tag: str, operations: list[tuple[str, str, Schema]]) -> str:
    body = "".join(_operation(*operation) for operation in operations)
    return f'<section id="{escape(tag)}"><h2>{escape(tag)}</h2>{body}</section>'


def _operation(method: str, path: str, operation: Schema) -> str:
    rows = "".join(_parameter(p) for p in operation.get("parameters", ()))
    table = (
        '<table><tr><th scope="col">parameter<th scope="col">in<th scope="col">type'
        f'<th scope="col">meaning</tr>{rows}</table>'
    )
    answers = "".join(_answer(status, body) for status, body in operation["responses"].items())
    return (
        f'<article class="card"><h3><code>{escape(method)} {escape(path)}</code> '
        f"{escape(operation.get('summary', ''))}</h3>"
        f"{_paragraphs(operation.get('description', ''))}{table if rows else ''}{_body(operation)}"
        f"<ul>{answers}</ul></article>"
    )


def _parameter(parameter: Schema) -> str:
    needed = " (required)" if parameter.get("required") else ""
    cells = (parameter["name"] + needed, parameter["in"])
    plain = "".join(f"<td>{escape(cell)}" for cell in cells)
    return f"<tr>{plain}<td>{_name(parameter.get('schema', {}))}<td>{escape(parameter.get('description', ''))}</tr>"


def _body(operation: Schema) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    kinds = ", ".join(
        f"{_name(body.get('schema', {}))} as <code>{escape(kind)}</code>" for kind, body in content.items()
    )
    return f"<p>Body: {kinds}</p>" if kinds else ""


def _answer(status: str, body: Schema) -> str:
    kinds = ", ".join(_name(content.get("schema", {})) for content in body.get("content", {}).values())
    return f"<li><strong>{escape(status)}</strong> {escape(body.get('description', ''))} {kinds}</li>"


def _type(name: str, body: Schema) -> str:
    rows = "".join(f"<tr><td><code>{escape(field)}</code><td>{_name(schema)}</tr>" for field, schema in _fields(body))
    table = f'<table><tr><th scope="col">field<th scope="col">type</tr>{rows}</table>' if rows else ""
    values = f"<p>{escape(', '.join(map(str, body['enum'])))}</p>" if "enum" in body else ""
    text = _paragraphs(body.get("description", ""))
    return f'<article class="card" id="type-{escape(name)}"><h3>{escape(name)}</h3>{text}{values}{table}</article>'


def _fields(body: Schema) -> Iterator[tuple[str, Schema]]:
    required = set(body.get("required", ()))
    for field, schema in body.get("properties", {}).items():
        yield field + ("" if field in required else "?"), schema


def _name(schema: Schema) -> str:
    """Return a short name of a type, with links to named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#type-{name}">{name}</a>'
    several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if several:
        return " or ".join(_name(each) for each in several)
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"map of {_name(schema['additionalProperties']) or 'anything'}"
    if schema.get("type") == "array":
        return f"list of {_name(schema.get('items', {})) or 'anything'}"
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return " | ".join(f"<code>{escape(str(value))}</code>" for value in values) or escape(
        str(schema.get("type", "anything"))
    )


def _paragraphs(text: str) -> str:
    blocks = (block.strip() for block in text.split("\n\n"))
    return "".join(f"<p>{escape(block)}</p>" for block in blocks if block)
