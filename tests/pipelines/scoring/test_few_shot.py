"""Of which categories nothing was trained on, and how a class is asked about by channel."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.scoring.few_shot import NEW, FewShotConfig, _by_channel, _slices
from pipelines.scoring.few_shot_pool import pool_of
from racm3.sampling.channel import image_log_likelihoods, mixture, shares
from tests.pipelines.scoring.test_few_shot_pool import examples
from tests.racm3.sampling.test_classify import LABELS, LAYOUT, questions, random_generator


def test_categories_without_training_documents_have_a_slice_of_their_own():
    asked = examples([(name, "unseen", name, name) for name in "abcd"])

    def groups(*trained, **config):
        pool = pool_of([asked], examples([(name, None, name, name) for name in trained]))
        found = _slices(pool, FewShotConfig(**config))
        return {where.group: {m.category for m in members} for where, members in found}

    assert groups("a", "z") == {"": set("abcd"), NEW: set("bcd")}
    assert groups("a", "b", "c") == {"": set("abcd")}, "one new category is no choice"
    assert groups("a", "b", "c", "d") == {"": set("abcd")}
    assert groups("a", "z", categories="new") == {NEW: set("bcd")}
    assert groups("a", "b", "c", categories="new") == {}


def test_a_sequence_holds_as_many_demonstrations_as_k_and_the_setting_allow():
    model, asked = random_generator(), questions(5, k=8)
    contender = SimpleNamespace(generator=SimpleNamespace(model=model, layout=LAYOUT))

    def by_hand(k, together, pool):
        first = [replace(one, demonstrations=one.demonstrations[:k]) for one in asked]
        likely = image_log_likelihoods(model, LAYOUT, first, LABELS, together=together)
        return np.stack([pool(one) for one in likely])

    for together, pooling, pool in (
        (1, "mixture", lambda one: mixture(one, len(one))),
        (2, "average", lambda one: shares(one).mean(axis=0)),
        (3, "average", lambda one: shares(one).mean(axis=0)),
    ):
        config = FewShotConfig(together=together, pooling=pooling, all_labels=False)
        found = _by_channel(contender, asked, LABELS, (1, 2, 6), config, lambda *_: None)
        assert sorted(found) == [1, 2, 6]
        for k, told in found.items():
            assert told == pytest.approx(by_hand(k, min(k, together), pool), rel=1e-3), (k, pooling)
