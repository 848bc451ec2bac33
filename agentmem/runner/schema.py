"""Converts JSON schemas to the subset of the API's strict mode. Pure.

In strict mode the model's JSON always fits the schema. The schema must then be in a subset of JSON Schema: every object
is closed, every property is required, and few keywords are allowed
(https://platform.openai.com/docs/guides/structured-outputs#supported-schemas). A schema outside of the subset is sent
without strict mode. Then the model's JSON need not fit, and agentmem validates it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_ALLOWED_KEYWORDS = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "$defs"}
_ALLOWED_KEYWORDS |= {"enum", "const", "description", "title", "pattern", "format", "minItems", "maxItems"}
_ALLOWED_KEYWORDS |= {"multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"}
_ALLOWED_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
# These do not validate anything, or have no effect once every property is required.
_DROPPED = {"default", "examples", "discriminator"}


class _NotStrictError(Exception):
    """The schema cannot be expressed in the subset."""


def strict_schema(schema: Schema) -> Schema | None:
    """Return the schema for strict mode, with every property required; None if strict mode cannot express it.

    Args:
        schema: the schema of an object, as pydantic creates it. It is not changed.
    """
    root = inline_root(schema)
    if root.get("type") != "object":
        return None
    try:
        return _to_strict(root)
    except _NotStrictError:
        return None


def inline_root(schema: Schema) -> Schema:
    """Replace a reference at the root, which pydantic creates for a recursive model, by what it refers to."""
    if "$ref" not in schema:
        return schema
    definition = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return {**definition, **{key: value for key, value in schema.items() if key != "$ref"}}


def _to_strict(node: object) -> Schema:
    if not isinstance(node, dict) or not node.keys() & {"type", "anyOf", "oneOf", "$ref", "enum", "const"}:
        raise _NotStrictError  # any value is allowed here, as for the annotation Any
    strict = {key: value for key, value in node.items() if key not in _DROPPED}
    if "oneOf" in strict:  # a tagged union: anyOf is equivalent, because the tags exclude each other
        strict["anyOf"] = strict.pop("oneOf")
    if strict.keys() - _ALLOWED_KEYWORDS or strict.get("format", "uuid") not in _ALLOWED_FORMATS:
        raise _NotStrictError
    if "(?" in strict.get("pattern", ""):  # a lookaround or an inline flag, which the subset does not have
        raise _NotStrictError
    for key in ("properties", "$defs"):
        if key in strict:
            strict[key] = {name: _to_strict(member) for name, member in strict[key].items()}
    if "items" in strict:
        strict["items"] = _to_strict(strict["items"])
    if "anyOf" in strict:
        strict["anyOf"] = [_to_strict(branch) for branch in strict["anyOf"]]
    if "$ref" in strict and len(strict) > 1:
        # A reference allows no other keyword beside it; a union with one branch does, so the description can stay.
        strict["anyOf"] = [{"$ref": strict.pop("$ref")}]
    return _close_object(strict) if strict.get("type") == "object" else strict


def _close_object(node: Schema) -> Schema:
    if node.get("additionalProperties", "properties" not in node) is not False:
        raise _NotStrictError  # an open object: a dict with any keys
    properties = node.setdefault("properties", {})
    return {**node, "required": list(properties), "additionalProperties": False}
