"""Classification by labels: laws, and a generator whose weights were set by hand to do it."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.sampling.classify import ClassifyConfig, Question, classify, ensemble
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.tasks import Prompt, sample_captions
from racm3.sequence.layout import Layout
from racm3.vocabulary import Vocabulary

TEXTS, CODES, IMAGE = 6, 8, 3
LAYOUT = Layout(vocabulary=Vocabulary(TEXTS, CODES, 2), image_tokens=IMAGE, max_text_tokens=4)
LABELS = ((2,), (5,))
PLAIN = ClassifyConfig()


def random_generator(num_slots=3, seed=0):
    config = GeneratorConfig(
        layers=2, width=24, heads=2, positions="document", num_places=LAYOUT.places.size,
        num_slots=num_slots, init_std=0.4,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    return Generator(config, LAYOUT.vocabulary, generator=random).eval()


@torch.no_grad()
def matching_generator(num_slots=3):
    """Writes the caption of the context whose codes are those of the main image.

    Channels: token | what was read of this document | what is to be written | slot. Layer 1: every
    token looks at its own document. Layer 2: it looks for tokens that are codes its document has,
    and writes what their documents have as text.
    """
    vocabulary = LAYOUT.vocabulary
    size = vocabulary.size
    token, read, written = (slice(i * size, (i + 1) * size) for i in range(3))
    slot = slice(3 * size, 3 * size + num_slots)
    width = slot.stop + slot.stop % 2
    config = GeneratorConfig(
        layers=2, width=width, heads=1, positions="document", num_slots=num_slots, ffn=1,
        num_places=LAYOUT.places.size, tie_embeddings=False, bias=False,
    )  # fmt: skip
    model = Generator(config, vocabulary, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    kinds = torch.zeros(2, size, size)
    for kind, ids in enumerate((vocabulary.text_range, vocabulary.image_range)):
        kinds[kind, ids, ids] = 1
    text, image = kinds
    model.tokens.weight[:, token] = torch.eye(size) * 4 / math.sqrt(width)
    model.slots.weight[:, slot] = torch.eye(num_slots) * 4
    model.output.weight[:, written] = text
    (query, key, value), (query2, key2, value2) = (
        block.attention.qkv.weight.split(width) for block in model.blocks
    )
    query[slot, slot] = key[slot, slot] = torch.eye(num_slots) * 3
    value[read, token] = torch.eye(size) * 4
    query2[token, read] = image * 6
    key2[token, token] = image * 6
    value2[written, read] = text * 4
    for block in model.blocks:
        block.attention.out.weight.copy_(torch.eye(width))
    return model.eval()


def code_set(*codes):
    return tuple((code,) * IMAGE for code in codes)


def questions(n=6, k=2, seed=0):
    r = np.random.default_rng(seed)
    images = r.integers(0, CODES, (n, 2 * k + 1, IMAGE)).tolist()
    return [
        Question(
            image=tuple(own[0]),
            demonstrations=tuple((tuple(own[1 + 2 * i]), tuple(own[2 + 2 * i])) for i in range(k)),
        )
        for own in images
    ]


def swapped(question):
    return replace(question, demonstrations=tuple((b, a) for a, b in question.demonstrations))


def of(model, asked, labels=LABELS, config=PLAIN):
    return np.stack(classify(model, LAYOUT, asked, labels, config))


# --- what it is -----------------------------------------------------------------------------


def test_probabilities_are_those_with_which_the_labels_would_be_written():
    model, question = random_generator(), questions(1, k=1)[0]
    shown = [
        DocumentTokens(text=label, image=image)
        for label, image in zip(LABELS, question.demonstrations[0], strict=True)
    ]
    prompt = Prompt(contexts=tuple(shown), image=question.image)
    drawn = sample_captions(
        model, LAYOUT, [prompt] * 400, SamplingConfig(temperature=1.0), seeds=range(400)
    )
    logprob = {sample.document.text: sample.logprob for sample in drawn}
    first, second = (math.exp(logprob[label]) for label in LABELS)
    found = of(model, [question], config=ClassifyConfig(all_orders=False))[0, 0]
    assert found == pytest.approx([first / (first + second), second / (first + second)], rel=1e-4)


def test_a_uniform_generator_prefers_no_label_but_the_shorter_one():
    model = random_generator()
    with torch.no_grad():
        model.tokens.weight.zero_()  # the output layer is the embedding
    assert of(model, questions()) == pytest.approx(0.5)
    found = of(model, questions(), labels=((1, 2), (3, 4, 0)))
    size = LAYOUT.vocabulary.size
    assert found == pytest.approx(np.broadcast_to([size / (size + 1), 1 / (size + 1)], (6, 2, 2)))


def test_a_generator_that_matches_images_tells_classes_it_never_saw():
    """Its answer follows the demonstrations, whatever the labels and the order."""
    model = matching_generator()
    pair = code_set(3, 6)
    asked = [Question(image=image, demonstrations=(pair,)) for image in (*pair, (3, 6, 3))]
    for labels in (LABELS, LABELS[::-1], ((0, 1), (4, 4))):
        first, second, mixed = of(model, asked, labels=labels)[:, 0, 0]
        assert first > 0.97
        assert second < 0.03
        assert mixed > 0.7
    assert of(model, [swapped(one) for one in asked])[:, 0, 0] == pytest.approx(
        of(model, asked)[:, 0, 1]
    )


# --- laws -----------------------------------------------------------------------------------


def test_classes_that_change_places_change_their_probabilities():
    model, asked = random_generator(), questions(8)
    there = of(model, asked)
    back = of(model, [swapped(one) for one in asked], labels=LABELS[::-1])
    assert back == pytest.approx(there[..., ::-1], rel=1e-4)
    given = ClassifyConfig(all_orders=False)
    there = of(model, asked, config=given)
    back = of(model, [swapped(one) for one in asked], labels=LABELS[::-1], config=given)
    assert np.abs(back - there[..., ::-1]).max() > 0.01, "one order only: the place decides, too"


def test_three_classes_stand_in_every_place_once():
    model, codes = random_generator(), code_set(1, 4, 7)
    labels = ((0,), (1,), (2,))
    found = of(model, [Question(image=codes[0], demonstrations=(codes,))], labels=labels)
    turned = Question(image=codes[0], demonstrations=((codes[1], codes[2], codes[0]),))
    again = of(model, [turned], labels=(labels[1], labels[2], labels[0]))
    assert again[..., [2, 0, 1]] == pytest.approx(found, rel=1e-4)
    assert found.sum(axis=-1) == pytest.approx(1)


def test_sets_are_read_one_by_one_and_averaged():
    model, asked = random_generator(), questions(4, k=3)
    found = of(model, asked)
    for index, question in enumerate(asked):
        alone = [replace(question, demonstrations=(one,)) for one in question.demonstrations]
        assert of(model, alone)[:, 0] == pytest.approx(found[index], rel=1e-4)
        assert ensemble(found[index], 2) == pytest.approx(found[index, :2].mean(axis=0))
        same = replace(question, demonstrations=question.demonstrations[:1] * 4)
        assert ensemble(of(model, [same])[0], 4) == pytest.approx(found[index, 0], rel=1e-4)
    with pytest.raises(ValueError, match="4 were asked"):
        ensemble(found[0], 4)


def test_classes_under_both_labels_have_the_mean_of_their_probabilities():
    model, asked = random_generator(), questions(5, k=2)
    both = of(model, asked, config=ClassifyConfig(all_labels=True))
    there, back = of(model, asked), of(model, asked, labels=LABELS[::-1])
    assert both == pytest.approx((there + back) / 2, rel=1e-4)
    swapped_both = of(
        model, [swapped(one) for one in asked], config=ClassifyConfig(all_labels=True)
    )
    assert swapped_both == pytest.approx(both[..., ::-1], rel=1e-4)
    alike = [replace(one, demonstrations=tuple((a, a) for a, _ in one.demonstrations))
             for one in asked]  # fmt: skip
    assert of(model, alike, config=ClassifyConfig(all_labels=True)) == pytest.approx(0.5, abs=1e-5)
    assert np.abs(of(model, alike) - 0.5).max() > 0.05, "a taste for a label"


@pytest.mark.parametrize("calibrate", [False, True])
def test_batches_change_nothing(calibrate):
    model, labels = random_generator(), ((1,), (2, 3, 4))
    asked = [*questions(3, k=1), *questions(2, k=3, seed=1)]
    told = []
    found = classify(
        model, LAYOUT, asked, labels, ClassifyConfig(calibrate=calibrate, batch_size=1),
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    rows = 9 * 2 * 2 * (1 + calibrate)
    assert told[-1] == (rows, rows)
    together = classify(model, LAYOUT, asked, labels, ClassifyConfig(calibrate=calibrate))
    assert [len(one) for one in found] == [1, 1, 1, 3, 3]
    for one, other in zip(found, together, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_generator_without_slots_for_contexts_reads_them_as_the_main_document():
    full, bare = random_generator(num_slots=3), random_generator(num_slots=1)
    with torch.no_grad():
        state = copy.deepcopy(bare.state_dict())
        state["slots.weight"] = state["slots.weight"].expand(3, -1).clone()
        full.load_state_dict(state)
    assert of(bare, questions()) == pytest.approx(of(full, questions()), rel=1e-5)


def test_calibration_takes_away_what_the_image_has_no_part_in():
    blind = random_generator()
    with torch.no_grad():
        for block in blind.blocks:  # logits follow from the last token alone
            block.attention.out.weight.zero_()
    plain, calibrated = (
        of(blind, questions(), config=ClassifyConfig(calibrate=on)) for on in (False, True)
    )
    assert np.abs(plain - 0.5).max() > 0.05
    assert calibrated == pytest.approx(0.5, abs=1e-5)
    asked = [Question(image=code_set(6)[0], demonstrations=(code_set(3, 6),))]
    seeing = of(matching_generator(), asked, config=ClassifyConfig(calibrate=True))
    assert seeing[0, 0, 1] > 0.97


def test_an_untrained_generator_is_right_in_half_of_the_cases():
    asked = questions(300, k=1)
    truth = np.arange(300) % 2
    right = of(random_generator(), asked)[:, 0].argmax(axis=1) == truth
    assert abs(right.mean() - 0.5) < 4 * math.sqrt(0.25 / 300)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (((1,),), "two labels or more"),
        (((1,), (1,)), "all different"),
        (((1,), ()), "0 tokens"),
        (((1,), (1, 2, 3, 4, 5)), "5 tokens"),
        (((1,), (2,), (3,)), "each of 3"),
    ],
)
def test_labels_and_sets_must_fit(labels, said):
    with pytest.raises(ValueError, match=said):
        of(random_generator(), questions(1), labels=labels)


def test_an_image_of_another_tokenizer_is_refused():
    question = questions(1)[0]
    with pytest.raises(ValueError, match="has 2 codes, the layout 3"):
        of(random_generator(), [replace(question, image=(1, 2))])
    shown = ((question.image, ()),)
    with pytest.raises(ValueError, match="has 0 codes, the layout 3"):
        of(random_generator(), [replace(question, demonstrations=shown)])
    with pytest.raises(ValueError, match="batch_size"):
        ClassifyConfig(batch_size=0)


def test_no_question_no_answer():
    assert classify(random_generator(), LAYOUT, [], LABELS, PLAIN) == []
