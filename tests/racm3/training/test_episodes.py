"""Episodes: documents of one kind under one word that means nothing."""

from dataclasses import replace

import numpy as np
import pytest

from racm3.sequence.layout import lay_out
from racm3.training.episodes import as_episode, has_episodes, kinds_of
from racm3.training.stream import StreamConfig
from tests.racm3.training.test_stream import LAYOUT, V, draw, equal, example

KIND = [
    example(
        n, category=None if n % 5 == 4 else "xyz"[n % 3], concept=f"c{n // 2}", source="ab"[n % 2]
    )
    for n in range(40)
]
PLACE = {one.document_id: one for one in KIND}
CONFIG = StreamConfig(batch_size=8, max_text_tokens=5, episodes=1.0)


def of(n, k, seed=0, sources="any"):
    rng = np.random.default_rng(seed)
    return as_episode(KIND[n], k, KIND, kinds_of(KIND), V, rng, sources=sources)


def test_contexts_are_other_concepts_of_the_category_and_all_captions_are_one_word():
    words = set()
    for seed in range(1000):
        n, k = seed % 40, 1 + seed % 3
        found = of(n, k, seed)
        if KIND[n].category is None:
            assert found is None
            continue
        (query,) = found.queries
        shown = [PLACE[name] for name in query.document_ids]
        assert len({one.document_id for one in shown}) == len(shown) == k
        assert {one.category for one in shown} == {KIND[n].category}
        assert KIND[n].concept not in {one.concept for one in shown}
        assert [one.image for one in query.contexts] == [one.main.image for one in shown]
        assert {one.text for one in query.contexts} == {found.main.text}
        assert 1 <= len(found.main.text) <= 3
        assert all(0 <= token < V.text_size for token in found.main.text)
        assert replace(found, main=KIND[n].main, queries=KIND[n].queries) == KIND[n]
        words.add(found.main.text)
    assert {len(word) for word in words} == {1, 2, 3}
    assert len(words) > 500, "made up anew each time"
    seen = {name for s in range(1000) for name in of(0, 1, s).queries[0].document_ids}
    assert seen == {
        one.document_id for one in KIND if one.category == "x" and one.concept != "c0"
    }, "any of them"


def test_fewer_contexts_than_asked_for_are_what_there_is():
    few = KIND[:4]  # x, y, z, x; c0, c0, c1, c1
    found = as_episode(few[0], 3, few, kinds_of(few), V, np.random.default_rng(0))
    assert found.queries[0].document_ids == (few[3].document_id,)
    assert as_episode(few[1], 3, few, kinds_of(few), V, np.random.default_rng(0)) is None


def test_contexts_of_others_are_all_those_of_any_that_are_of_other_sources():
    shown = {name: set() for name in ("any", "others")}
    for seed in range(1000):
        for sources, seen in shown.items():
            seen |= set(of(0, 2, seed, sources).queries[0].document_ids)
    assert shown["others"] == {name for name in shown["any"] if PLACE[name].source == "b"}
    assert shown["others"] < shown["any"]


def test_there_are_episodes_if_and_only_if_some_example_has_one():
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(1000):
        some = [
            example(n, category="x", concept=f"c{rng.integers(3)}", source=f"s{rng.integers(2)}")
            for n in range(int(rng.integers(1, 5)))
        ]
        for sources in ("any", "others"):
            had = [
                as_episode(one, 1, some, kinds_of(some), V, rng, sources=sources) for one in some
            ]
            assert has_episodes(some, sources) == any(one is not None for one in had)
            found.add((sources, has_episodes(some, sources)))
    assert len(found) == 4, "both answers to both questions"
    assert not has_episodes([replace(one, category=None) for one in KIND])


def records(config, steps=60):
    return [draw(step, config, KIND)[1] for step in range(steps)]


def test_an_episodes_row_is_its_documents_in_causal_order():
    episodes = 0
    for record in records(CONFIG):
        for row in record.rows:
            if row.query is not None or not row.context_ids:
                continue
            episodes += 1
            main = PLACE[f"d{row.example_id[1:]}"].main
            read = np.frombuffer(row.ids_read, dtype="<i8").tolist()
            label = tuple(i - V.text_range.start for i in read[1 : read.index(V.break_id)])
            shown = [replace(PLACE[name].main, text=label) for name in row.context_ids]
            expected = lay_out(replace(main, text=label), shown, LAYOUT)
            assert read == list(expected.ids[: len(read)])
            assert (row.draw, row.masking.sampler, row.masking.spans) == (None, "none", ())
    assert episodes > 200


def test_the_stream_shows_what_others_drew_where_it_is_told_to():
    other = same = 0
    for record in records(replace(CONFIG, episode_sources="others")):
        for row in record.rows:
            if row.query is None:
                main = PLACE[f"d{row.example_id[1:]}"].source
                other += sum(PLACE[name].source != main for name in row.context_ids)
                same += sum(PLACE[name].source == main for name in row.context_ids)
    assert other > 200
    assert same == 0
    with pytest.raises(ValueError, match="episode_sources is any or others"):
        replace(CONFIG, episode_sources="mine")


def test_the_share_of_episodes_is_as_asked_and_without_contexts_there_is_none():
    config = replace(CONFIG, episodes=0.3, k_per_batch=False)
    asked = told = 0
    for record in records(config, steps=400):
        for row in record.rows:
            if PLACE[f"d{row.example_id[1:]}"].category is None or not row.context_ids:
                continue
            asked += 1
            told += row.query is None
    assert abs(told / asked - 0.3) < 3 * (0.21 / asked) ** 0.5
    with pytest.raises(ValueError, match="episodes only with max_k"):
        replace(CONFIG, max_k=0)


def test_without_episodes_categories_change_nothing():
    plain = [replace(one, category=None, concept=None) for one in KIND]
    for step in range(20):
        one, other = (draw(step, replace(CONFIG, episodes=0.0), some) for some in (KIND, plain))
        assert equal(one[0], other[0])


def test_ranks_share_the_episodes_of_one():
    for step in range(10):
        dealt = [draw(step, CONFIG, KIND, rank=rank, world_size=2)[1].rows for rank in (0, 1)]
        told = [row.ids_read for pair in zip(*dealt, strict=True) for row in pair]
        assert told == [row.ids_read for row in draw(step, CONFIG, KIND)[1].rows]
