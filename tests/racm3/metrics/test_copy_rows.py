from __future__ import annotations

from dataclasses import dataclass

import pytest

from racm3.metrics.copy_rows import copy_top


@dataclass
class Hit:
    document_id: str


def test_the_best_document_is_copied_and_queries_without_one_are_left_out():
    captions = {"a": "red flag", "b": "blue flag"}
    assert copy_top([["b", "a"], [], ["a"]], captions) == ([0, 2], ["blue flag", "red flag"])


def test_records_with_an_id_will_do():
    assert copy_top([[Hit("b"), Hit("a")]], {"a": 1, "b": 2}) == ([0], [2])


def test_a_document_without_value_is_named():
    with pytest.raises(KeyError, match="c was retrieved"):
        copy_top([["c"]], {"a": 1})
