from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.recipes_emoji import smoke
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
        ({"normalize": {"image_size": 32}}, "must equal the image tokenizer's 64 pixels"),
        (
            {"image_tokenizer": {"pretrained": {"file": "a.pt", "preset": "llamagen-vq8"}}},
            "must equal the image tokenizer's 256 pixels",
        ),
        ({"min_success": "much"}, "min_success"),
        ({"generators": {"ra": {"fit": {"steps": -1}}}}, "greater than 0"),
        ({"generators": {"ra": False, "vanilla": False}}, "one of `generators` at least"),
        ({"encoder": None}, "either `encoder`, to be fitted here, or `embed.pretrained`"),
        ({"embed": {"pretrained": {"model": "ViT-B-32"}}}, "either `encoder`"),
        ({"ingest": {"split": {"x": {"validation": 0.1}}}}, "ingest.split.x: no source is called"),
        ({"ingest": {"columns": {"x": {"url": "u"}}}}, "ingest.columns.x: no source is called x"),
        ({"memories": {"restricted": {"evaluates": ["un"]}}}, "no evaluation set un; sets are fam"),
        (
            {"generators": {"ra": {"start_from": "rb"}}},
            "generators.ra.start_from: there is no generator rb; there are ra, vanilla",
        ),
        (
            {"generators": {"ra": {"start_from": "vanilla"}, "vanilla": {"start_from": "ra"}}},
            "generators.vanilla.start_from: ra <- vanilla <- ra is a circle",
        ),
        ({"generators": {"ra": {"start_from": "ra"}}}, "ra <- ra is a circle"),
        *(
            (changes, f"{key}: 3 contexts are more than generators.ra is trained with (stream.max")
            for key, changes in (
                ("generate.k", {"generate": {"k": 3}}),
                ("score.k", {"score": {"k": 3}}),
                ("score.ks", {"score": {"ks": [0, 3]}}),
            )
        ),
        ({"generators": {"ra": {"size": "3b"}}}, "generators.ra.size: input should be 'tiny'"),
        ({"generators": {"ra": {"width": None}}}, "needs `size`, or `layers`, `width` and `heads`"),
        ({"generators": {"ra": {"heads": 7}}}, "width 64 must be 7 heads of an even size"),
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
    assert "{'" not in str(caught.value)  # no values of the whole run behind the sentence
    assert ": :" not in str(caught.value)


def own(**changes: Any) -> dict[str, Any]:
    """A run on one source of its own."""
    source = {"name": "photos", "paths": ["links/*.parquet"], "role": "train"}
    base = {
        "corpus": False,
        "memories": {"extended": False},
        "sources": [source],
        "ingest": {"split": {"photos": {"validation": 0.1, "evaluation": 0.1}}},
    }
    return changed(**deep_merge(base, changes))


def test_false_leaves_a_part_of_the_recipe_out() -> None:
    run = validated(own(), name="mine.toml")
    assert run.corpus is None
    assert list(run.memories) == ["restricted"]
    assert run.sets == ("photos",)
    public = own(encoder=False, embed={"pretrained": {"model": "ViT-B-32"}})
    assert validated(public, name="mine.toml").encoder is None
    assert list(validated(own(generators={"vanilla": False}), name="x").generators) == ["ra"]


def test_what_was_left_out_can_be_put_back() -> None:
    run = validated(deep_merge(own(), {"corpus": {"flags": 4}}), name="mine.toml")
    assert run.corpus is not None
    assert run.corpus.flags == 4
    assert run.sets == ("familiar", "photos", "unseen")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memories": {"extended": {"evaluates": ["unseen"]}}}, "memories.extended = false"),
        ({"ingest": {"split": {"photos": {"evaluation": 0.0}}}}, "no source has role evaluation"),
        ({"ingest": {"split": {"photos": {"validation": 0.0}}}}, "no source has role validation"),
        ({"ingest": {"split": {"photos": {"evaluation": 0.9}}}}, "must leave something to train"),
        ({"ingest": {"split": {"photo": {"evaluation": 0.1}}}}, "no source is called photo"),
        (
            {"sources": [{"name": "photos", "paths": ["x"], "role": "memory"}]},
            "only role train is split, not memory",
        ),
    ],
)
def test_own_sources_give_all_roles(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        validated(own(**changes), name="mine.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
