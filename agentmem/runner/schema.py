"""JSON schemas as the API's strict mode takes them.

In strict mode the model's JSON always fits the schema. The price is a subset of JSON Schema: every object
closed, every property required, a short list of keywords
(https://platform.openai.com/docs/guides/structured-outputs#supported-schemas). A schema outside it is sent
without strict mode, where the model does its best and validation on this side has the last word. Pure.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    "$ref",
    "$defs",
    "enum",
    "const",
}
_KEYWORDS |= {"description", "title", "pattern", "format", "minItems", "maxItems"}
_KEYWORDS |= {"multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
# They tell a validator nothing, or nothing that is left once every property is required.
_DROPPED = {"default", "examples", "discriminator"}


class _NotStrictError(Exception):
    """The schema says something that the strict subset cannot."""


def strict_schema(schema: Schema) -> Schema | None:
    """The same schema for strict mode, every property required; None where strict mode cannot say it.

    Args:
        schema: of an object, as pydantic writes it. It is not changed.
    """
    root = inline_root(schema)
    if root.get("type") != "object":
        return None
    try:
        return _strict(root)
    except _NotStrictError:
        return None


def inline_root(schema: Schema) -> Schema:
    """The schema with an object at its root, where pydantic put a reference (a model that refers to itself)."""
    if "$ref" not in schema:
        return schema
    definition = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return {**definition, **{key: value for key, value in schema.items() if key != "$ref"}}


def _strict(node: object) -> Schema:
    if not isinstance(node, dict) or not node.keys() & {"type", "anyOf", "oneOf", "$ref", "enum", "const"}:
        raise _NotStrictError  # anything goes here: `Any`
    strict = {key: value for key, value in node.items() if key not in _DROPPED}
    if "oneOf" in strict:  # a tagged union: the tag alone tells the branches apart
        strict["anyOf"] = strict.pop("oneOf")
    if strict.keys() - _KEYWORDS or strict.get("format", "uuid") not in _FORMATS or "(?" in strict.get("pattern", ""):
        raise _NotStrictError
    for key in ("properties", "$defs"):
        if key in strict:
            strict[key] = {name: _strict(member) for name, member in strict[key].items()}
    if "items" in strict:
        strict["items"] = _strict(strict["items"])
    if "anyOf" in strict:
        strict["anyOf"] = [_strict(branch) for branch in strict["anyOf"]]
    if "$ref" in strict and len(strict) > 1:
        # A reference takes no neighbours; one branch of a union does, and keeps the description.
        strict["anyOf"] = [{"$ref": strict.pop("$ref")}]
    return _closed(strict) if strict.get("type") == "object" else strict


def _closed(node: Schema) -> Schema:
    if node.get("additionalProperties", "properties" not in node) is not False:
        raise _NotStrictError  # open: a dict of unknown keys
    properties = node.setdefault("properties", {})
    return {**node, "required": list(properties), "additionalProperties": False}
