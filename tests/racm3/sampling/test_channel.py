"""Classification through the noisy channel: definition, laws, a generator that can do it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.sampling.channel import image_log_likelihoods, mixture, shares
from racm3.sampling.classify import Question, ensemble
from racm3.sequence.layout import lay_out
from tests.racm3.sampling.test_classify import (
    IMAGE,
    LABELS,
    LAYOUT,
    code_set,
    questions,
    random_generator,
    swapped,
)


def of(model, asked, labels=LABELS, **how):
    return np.stack(image_log_likelihoods(model, LAYOUT, asked, labels, **how))


def test_it_is_the_sum_of_the_log_probabilities_of_the_images_codes():
    model, question = random_generator(), questions(1, k=1)[0]
    found = of(model, [question])[0, 0]
    for index, label in enumerate(LABELS):
        expected = by_hand(model, question.image, [question.demonstrations[0][index]], label)
        assert found[index] == pytest.approx(expected, rel=1e-5)


def by_hand(model, image, shown, label):
    demonstrations = [DocumentTokens(text=label, image=one) for one in shown]
    sequence = lay_out(DocumentTokens(text=label, image=image), demonstrations, LAYOUT)
    picture = sequence.main_segments[1]
    assert picture.stop - picture.start == IMAGE
    batch = _batch(sequence)
    with torch.no_grad():
        logits = model(batch.input_ids, batch.places, batch.next_places, batch.slots)[0]
    log = torch.log_softmax(logits, dim=-1)
    return sum(float(log[at - 1, sequence.ids[at]]) for at in range(picture.start, picture.stop))


def _batch(sequence):
    from racm3.objective.masking import mask, to_row
    from racm3.sequence.batch import Batch

    row = to_row(sequence, mask(sequence, [], LAYOUT.vocabulary), LAYOUT, alpha=0)
    return Batch.of_rows([row], pad_id=LAYOUT.vocabulary.pad_id)


def test_classes_that_change_places_change_their_likelihoods():
    model, asked = random_generator(), questions(6)
    there = of(model, asked)
    back = of(model, [swapped(one) for one in asked], labels=LABELS[::-1])
    assert back == pytest.approx(there[..., ::-1], rel=1e-5)


def test_under_all_labels_only_the_demonstration_decides():
    model, asked = random_generator(), questions(6)
    both = of(model, asked, all_labels=True)
    one, other = of(model, asked), of(model, asked, labels=LABELS[::-1])
    assert both == pytest.approx(np.logaddexp(one, other) - np.log(2), rel=1e-5)
    alike = [
        replace(one, demonstrations=tuple((a, a) for a, _ in one.demonstrations)) for one in asked
    ]
    same = of(model, alike, all_labels=True)
    assert same[..., 0] == pytest.approx(same[..., 1], rel=1e-5)
    assert np.abs(np.diff(of(model, alike), axis=-1)).max() > 1e-3, "a taste for a label"


def test_a_generator_that_copies_finds_the_class_whose_demonstration_it_sees_again():
    """The start of weights that copies what agrees, untrained: no label is known to it."""
    from racm3.generator.config import GeneratorConfig
    from racm3.generator.induction_start import start_induction
    from racm3.generator.transformer import Generator
    from racm3.sequence.layout import Layout
    from racm3.vocabulary import Vocabulary

    side, codes = 6, 12
    layout = Layout(vocabulary=Vocabulary(8, codes, 2), image_tokens=side * side, max_text_tokens=4)
    config = GeneratorConfig(
        layers=2, width=128, heads=4, positions="document", num_places=layout.places.size,
        num_slots=3, tie_embeddings=False,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(0)
    model = Generator(config, layout.vocabulary, generator=chance).eval()
    codebook = torch.randn(codes, 8, generator=chance)
    start_induction(model, layout.places, (side, side), codebook, generator=chance)
    random = np.random.default_rng(0)
    asked = []
    for _ in range(12):
        own, other = random.integers(0, codes, (2, side * side))
        seen = np.where(random.random(side * side) < 0.2, random.integers(0, codes), own)
        asked.append(
            Question(
                image=tuple(own.tolist()),
                demonstrations=((tuple(seen.tolist()), tuple(other.tolist())),),
            )
        )
    told = image_log_likelihoods(model, layout, asked, ((2,), (5,)), all_labels=True)
    assert all(one[0, 0] > one[0, 1] for one in told)


def test_a_class_is_the_even_mixture_of_its_demonstrations():
    values = np.array([[-40.0, -43.0], [-60.0, -41.0], [-1.0, -2.0]])
    likelihood = np.exp(values[:2]).mean(axis=0)
    assert mixture(values, 2) == pytest.approx(likelihood / likelihood.sum())
    assert mixture(values, 3).sum() == pytest.approx(1)
    assert mixture(values * 100, 1) == pytest.approx([1, 0])
    for k in (0, 4):
        with pytest.raises(ValueError, match="were asked for"):
            mixture(values, k)


def test_sets_that_are_read_together_are_contexts_of_one_sequence():
    model, asked = random_generator(), questions(3, k=5)
    told = image_log_likelihoods(model, LAYOUT, asked, LABELS, together=2)
    assert [one.shape for one in told] == [(3, len(LABELS))] * 3, "two, two and the last alone"
    for one, found in zip(asked, told, strict=True):
        for n, sets in enumerate((one.demonstrations[:2], one.demonstrations[2:4])):
            for c, label in enumerate(LABELS):
                expected = by_hand(model, one.image, [of_set[c] for of_set in sets], label)
                assert found[n, c] == pytest.approx(expected, rel=1e-5)
        alone = replace(one, demonstrations=one.demonstrations[4:])
        (last,) = image_log_likelihoods(model, LAYOUT, [alone], LABELS)
        assert found[2] == pytest.approx(last[0], rel=1e-5)
    with pytest.raises(ValueError, match="together is 0"):
        image_log_likelihoods(model, LAYOUT, asked, LABELS, together=0)


def test_each_set_alone_has_the_mixture_of_itself():
    values = np.random.default_rng(0).normal(-200, 40, (1000, 3))
    found = shares(values)
    assert found.sum(axis=1) == pytest.approx(np.ones(1000))
    for one, alone in zip(values, found, strict=True):
        assert mixture(one[None], 1) == pytest.approx(alone)
    odds = np.log(found[:, 0] / found[:, 1])
    small = np.abs(values[:, 0] - values[:, 1]) < 30
    assert odds[small] == pytest.approx((values[:, 0] - values[:, 1])[small])


def test_one_near_demonstration_decides_the_mixture_and_is_one_voice_of_the_average():
    values = np.array([[-50.0, -90.0], [-120.0, -110.0], [-120.0, -110.0]])
    assert mixture(values, 3) == pytest.approx([1, 0])
    assert ensemble(shares(values), 3) == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


def test_batches_change_nothing_and_progress_is_told():
    model, asked = random_generator(), [*questions(3, k=1), *questions(2, k=3, seed=1)]
    told = []
    found = image_log_likelihoods(
        model, LAYOUT, asked, LABELS, all_labels=True, batch_size=1,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (9 * 2 * 2,) * 2
    together = image_log_likelihoods(model, LAYOUT, asked, LABELS, all_labels=True)
    for one, other in zip(found, together, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert image_log_likelihoods(model, LAYOUT, [], LABELS) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="all different"):
        of(random_generator(), questions(1), labels=((1,), (1,)))
    with pytest.raises(ValueError, match="has 0 codes"):
        of(random_generator(), [replace(questions(1)[0], demonstrations=((code_set(1)[0], ()),))])
