"""`StageConfig`: a setting that came later changes no fingerprint while it is not used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.runtime.stage import StageConfig


class Inner(StageConfig):
    later: ClassVar[Mapping[str, Any]] = {"how": "as before"}
    count: int = 1
    how: str = "as before"


class Outer(StageConfig):
    inner: Inner = Inner()


@dataclass(frozen=True)
class Record:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    size: int = 3
    noise: float = 0.0


class WithRecord(StageConfig):
    later: ClassVar[Mapping[str, Any]] = {"record.noise": 0.0}
    record: Record = Record()


def test_what_came_later_is_dumped_only_where_it_differs() -> None:
    assert Inner().canonical() == {"count": 1}
    assert Inner(how="otherwise").canonical() == {"count": 1, "how": "otherwise"}
    assert Inner(count=2).model_dump() == {"count": 2}, "other defaults stay"


def test_so_it_is_inside_another_config() -> None:
    assert Outer().canonical() == {"inner": {"count": 1}}
    other = Outer(inner=Inner(how="otherwise"))
    assert other.canonical() == {"inner": {"count": 1, "how": "otherwise"}}


def test_so_it_is_in_a_record_that_is_no_config() -> None:
    assert WithRecord().canonical() == {"record": {"size": 3}}
    other = WithRecord(record=Record(noise=0.5))
    assert other.canonical() == {"record": {"size": 3, "noise": 0.5}}
    assert WithRecord.model_validate(other.canonical()) == other
    assert WithRecord().model_dump(exclude={"record"}) == {}


def test_what_was_dumped_is_read_back_the_same() -> None:
    for one in (Outer(), Outer(inner=Inner(how="otherwise"))):
        assert Outer.model_validate(one.model_dump()) == one
