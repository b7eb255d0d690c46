from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.recipes import smoke
from pipelines.config import RunConfig, deep_merge, validated
from pipelines.errors import UsageError

TREES = st.recursive(
    st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def changed(**changes: Any) -> dict[str, Any]:
    return deep_merge(smoke().model_dump(), changes)


@given(TREES, TREES)
def test_changes_win_and_the_rest_stays(base: Any, changes: Any) -> None:
    merged = deep_merge(base, changes)
    assert set(merged) == set(base) | set(changes)
    assert deep_merge(merged, changes) == merged
    assert all(merged[key] == base[key] for key in set(base) - set(changes))


def test_a_run_survives_json() -> None:
    run = smoke()
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("changes", "path", "nearest"),
    [
        ({"genrators": {}}, "genrators", "generators"),
        ({"download": {"max_byte": 1}}, "download.max_byte", "max_bytes"),
        ({"generators": {"ra": {"layres": 2}}}, "generators.ra.layres", "layers"),
        (
            {"generators": {"ra": {"fit": {"learning_rat": 1}}}},
            "generators.ra.fit.learning_rat",
            "learning_rate",
        ),
        ({"encoder": {"training": {"sed": 1}}}, "encoder.training.sed", "seed"),
        ({"corpus": {"familar": 1}}, "corpus.familar", "familiar"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(
    changes: dict[str, Any], path: str, nearest: str
) -> None:
    with pytest.raises(UsageError) as caught:
        validated(changed(**changes), name="mine.toml")
    assert str(caught.value).startswith(f"mine.toml: {path}: there is no such key")
    assert f"did you mean {nearest}?" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": None}, "needs `sources`"),
        ({"max_text_tokens": 9}, "must equal max_text_tokens"),
        ({"min_success": "much"}, "min_success"),
        ({"generators": {"ra": {"fit": {"steps": -1}}}}, "greater than 0"),
        (
            {"sources": [{"name": "x", "paths": ["x"], "role": "evaluation"}]},
            "role evaluation needs a `set`",
        ),
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as caught:
        validated(changed(**changes), name="mine.toml")
    assert said in str(caught.value)
