from __future__ import annotations

import pytest

from pipelines.sources.emoji_names import (
    base_concept,
    cldr_caption,
    code_of,
    is_flag,
    merge_concepts,
    unicode_caption,
    without_tones,
)


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("1F1E7-1F1F9", "1f1e7-1f1f9"),
        ("23-fe0f-20e3", "0023-20e3"),
        ("0023-FE0F-20E3", "0023-20e3"),
        ("\U0001f1e7\U0001f1f9", "1f1e7-1f1f9"),
        ("#\ufe0f\u20e3", "0023-20e3"),
        ("\u00a9", "00a9"),
        ("a9", "00a9"),
    ],
)
def test_every_spelling_gives_one_code(spelling: str, code: str) -> None:
    assert code_of(spelling) == code
    assert code_of(code) == code


@pytest.mark.parametrize(
    ("codes", "concept"),
    [
        # cook: person, man, woman, with and without tone
        (
            ["1f9d1-200d-1f373", "1f468-200d-1f373", "1f469-1f3ff-200d-1f373"],
            "1f9d1-1f373",
        ),
        # man and woman running, toned
        (["1f3c3", "1f3c3-200d-2640", "1f3c3-1f3fd-200d-2642"], "1f3c3"),
        # a person: hair, beard, blond
        (["1f9d1", "1f468-200d-1f9b0", "1f469-1f3fb-200d-1f9b3", "1f9d4-1f3fe", "1f471"], "1f9d1"),
        (["1f46a", "1f468-200d-1f469-200d-1f466", "1f9d1-200d-1f9d1-200d-1f9d2"], "1f46a"),
        (["1f46b", "1f469-1f3fb-200d-1f91d-200d-1f468-1f3ff"], "1f9d1-1f91d-1f9d1"),
        (["1f91d", "1faf1-1f3fb-200d-1faf2-1f3fd"], "1f91d"),
        (["1f1e7-1f1f9"], "1f1e7-1f1f9"),
        (["1f3fb"], "1f3fb"),  # a lone tone
        (["2640"], "2640"),  # the female sign itself
    ],
)
def test_relatives_share_a_base_concept(codes: list[str], concept: str) -> None:
    assert {base_concept(code) for code in codes} == {concept}


def test_without_tones_keeps_the_rest() -> None:
    assert without_tones("1f469-1f3ff-200d-1f373") == "1f469-200d-1f373"
    assert without_tones("1f3ff") == "1f3ff"


def test_flags_are_countries_and_their_parts() -> None:
    assert is_flag("1f1e7-1f1f9")
    assert is_flag("1f3f4-e0067-e0062-e0065-e006e-e0067-e007f")
    assert not is_flag("1f3f4-200d-2620")  # pirates
    assert not is_flag("1f3f3")


def test_cldr_captions_get_their_prefix_back() -> None:
    assert cldr_caption("1f1e7-1f1f9", ":Bhutan:") == "flag: Bhutan"
    assert cldr_caption("1f9d1-200d-1f373", ":woman_cook:") == "woman cook"


def test_unicode_captions_name_the_tones() -> None:
    names = {"1f44b": "WAVING HAND SIGN", "1f1e7-1f1f9": "Bhutan Flag"}
    assert unicode_caption("1f44b", names) == "waving hand sign"
    assert unicode_caption("1f44b-1f3fe", names) == "waving hand sign, fitzpatrick type-5"
    assert unicode_caption("1f1e7-1f1f9", names) == "Bhutan Flag"
    assert unicode_caption("1f600", names) is None
    assert unicode_caption("1f3fb", {"1f3fb": "TONE"}) == "tone"


def test_concepts_that_share_a_picture_are_joined_through_chains() -> None:
    concepts = {"a": "a", "b": "b", "c": "c", "d": "d"}
    assert merge_concepts(concepts, [["b", "c"], ["c", "a"], ["d"]]) == {
        "a": "a",
        "b": "a",
        "c": "a",
        "d": "d",
    }
