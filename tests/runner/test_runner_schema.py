"""Schemas in strict mode: nothing is lost, nothing is promised that strict mode cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from agentmem.runner.schema import inline_root, strict_schema


class Point(BaseModel):
    x: int
    label: str = "p"


class Circle(BaseModel):
    kind: Literal["circle"]
    centre: Annotated[Point, Field(description="Where it is")]


class Box(BaseModel):
    kind: Literal["box"]
    corners: list[Point]


class Drawing(BaseModel):
    shape: Annotated[Circle | Box, Field(discriminator="kind")]
    note: str | None = None


class Node(BaseModel):
    children: list[Node] = []


@dataclass
class Plain:
    when: float


def schema_of(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema()


def test_every_object_is_closed_and_every_property_required() -> None:
    strict = strict_schema(schema_of(Drawing))
    assert strict is not None
    objects = [strict, *strict["$defs"].values()]
    assert len(objects) == 4
    for node in objects:
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])


def test_defaults_go_because_strict_mode_refuses_them() -> None:
    assert "default" not in str(strict_schema(schema_of(Drawing)))


def test_a_tagged_union_becomes_a_plain_one() -> None:
    strict = strict_schema(schema_of(Drawing))
    assert strict is not None
    assert [branch["$ref"] for branch in strict["properties"]["shape"]["anyOf"]] == ["#/$defs/Circle", "#/$defs/Box"]
    assert strict["properties"]["shape"].keys() == {"anyOf", "title"}


def test_a_reference_stands_alone_and_keeps_its_description() -> None:
    strict = strict_schema(schema_of(Circle))
    assert strict is not None
    centre = strict["properties"]["centre"]
    assert centre == {"anyOf": [{"$ref": "#/$defs/Point"}], "description": "Where it is"}


def test_a_model_that_refers_to_itself_has_an_object_at_its_root() -> None:
    strict = strict_schema(schema_of(Node))
    assert strict is not None
    assert strict["type"] == inline_root(schema_of(Node))["type"] == "object"
    assert strict["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert strict["$defs"]["Node"]["required"] == ["children"]


def test_a_dataclass_is_as_good_as_a_model() -> None:
    strict = strict_schema(schema_of(Plain))
    assert strict is not None
    assert strict["required"] == ["when"]


@pytest.mark.parametrize(
    "kind",
    [
        dict[str, int],
        list[int],
        int,
        Annotated[Plain, Field(json_schema_extra={"patternProperties": {}})],
    ],
)
def test_what_is_no_closed_object_is_not_strict(kind: Any) -> None:
    assert strict_schema(schema_of(kind)) is None


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        dict[str, int],
        tuple[int, str],
        set[int],
        Annotated[str, Field(min_length=1)],
        Annotated[str, Field(pattern="(?i)x")],
        bytes,
    ],
)
def test_what_the_subset_cannot_say_is_not_strict(annotation: Any) -> None:
    class Holder(BaseModel):
        value: annotation
        other: int

    assert strict_schema(schema_of(Holder)) is None


def test_the_given_schema_is_left_as_it_was() -> None:
    schema = schema_of(Drawing)
    strict_schema(schema)
    assert schema == schema_of(Drawing)
