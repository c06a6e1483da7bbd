"""Records of our own keep what ``dataclasses`` promises for the part that they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from airpanda.core import records

KINDS = pytest.mark.parametrize("kind", [dataclasses, records], ids=["dataclasses", "records"])


def make(kind: Any) -> Any:
    class Point:
        """A point."""

        x: int
        y: int = 2
        tags: list = kind.field(default_factory=list, repr=False)  # type: ignore[type-arg]
        secret: str = kind.field(default="no", repr=False)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("negative")

    Point.__qualname__ = "Point"
    return kind.dataclass(frozen=True)(Point)


@KINDS
@pytest.mark.parametrize(
    "call",
    [
        lambda cls: cls(),
        lambda cls: cls(1, 2, [], "", 5),
        lambda cls: cls(1, x=1),
        lambda cls: cls(1, z=1),
        lambda cls: cls(y=1),
    ],
)
def test_wrong_calls(kind: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        call(make(kind))


@KINDS
def test_nothing_changes_afterwards(kind: Any) -> None:
    point = make(kind)(1)
    with pytest.raises(AttributeError):
        point.x = 5
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 5


@KINDS
def test_its_own_check_is_made(kind: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        make(kind)(-1)


@KINDS
def test_values_and_defaults(kind: Any) -> None:
    cls = make(kind)
    one, other = cls(1), cls(x=1, y=2, secret="no")
    assert (one.x, one.y, one.tags, one.secret) == (1, 2, [], "no")
    assert one.tags is not other.tags
    assert one == other
    assert one != cls(2)
    assert one != (1, 2, [], "no")
    assert repr(one) == "Point(x=1, y=2)"
    assert cls.y == 2
    assert not hasattr(cls, "tags")


@KINDS
def test_equal_ones_hash_alike(kind: Any) -> None:
    @kind.dataclass(frozen=True)
    class Name:
        text: str
        number: int = 0

    assert len({Name("a"), Name("a", 0), Name("b")}) == 2


@KINDS
def test_identity_where_that_is_asked_for(kind: Any) -> None:
    @kind.dataclass(frozen=True, eq=False)
    class Thing:
        text: str

    one = Thing("a")
    assert one != Thing("a")
    assert len({one, Thing("a")}) == 2


@KINDS
def test_a_copy_with_changes(kind: Any) -> None:
    point = make(kind)(1, tags=["t"])
    changed = kind.replace(point, x=3)
    assert (changed.x, changed.tags, point.x) == (3, ["t"], 1)
    with pytest.raises(ValueError, match="negative"):
        kind.replace(point, x=-1)
    with pytest.raises(TypeError):
        kind.replace(point, z=1)


def test_records_that_could_change_are_not_made() -> None:
    with pytest.raises(TypeError):
        records.dataclass(frozen=False)
