import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.blocks import induction_blocks
from racm3.generator.config import GeneratorConfig
from racm3.generator.induction_start import spread_vectors, start_image_embeddings
from racm3.generator.transformer import Generator
from racm3.sequence.layout import Layout
from racm3.training.stream import Example, evaluation_batch
from racm3.vocabulary import Vocabulary

CODES, PLACES, CAPTION = 64, 36, 4
VOCABULARY = Vocabulary(text_size=20, image_size=CODES, num_sentinels=2)
LAYOUT = Layout(vocabulary=VOCABULARY, image_tokens=PLACES, max_text_tokens=CAPTION)


def make(*, num_slots=3, **changes):
    shape = {"layers": 3, "width": 96, "heads": 3, "positions": "document", "init_std": 0.1}
    shape |= {"num_places": LAYOUT.places.size, "tie_embeddings": False, "induction_start": True}
    config = GeneratorConfig(**shape | {"num_slots": num_slots} | changes)
    return Generator(config, VOCABULARY, generator=torch.Generator().manual_seed(0)).eval()


def codebook():
    return torch.randn(CODES, 16, generator=torch.Generator().manual_seed(3))


def started():
    model = make()
    start_image_embeddings(model, codebook(), generator=torch.Generator().manual_seed(4))
    return model


def documents(count, seed):
    """Documents of random codes, no code twice in a row."""
    steps = np.random.default_rng(seed).integers(1, CODES, (count, PLACES))
    images = steps.cumsum(axis=1) % CODES
    return [DocumentTokens(text=(1, 2, 3), image=tuple(image.tolist())) for image in images]


def preferred(model, main, contexts):
    """Probabilities of the codes at each place of the main document's image, [PLACES, CODES]."""
    example = Example(example_id="e", document_id="d", main=main, queries=())
    batch = evaluation_batch(
        [example], layout=LAYOUT, task="image", k=len(contexts), contexts=[contexts]
    )
    keep = batch.weights > 0
    with torch.no_grad():
        logits = model(batch.input_ids, batch.places, batch.next_places, batch.slots, keep=keep)
    first = VOCABULARY.image_range.start
    return logits.softmax(-1)[:, first : first + CODES]


def share(probabilities, image):
    return probabilities.gather(1, torch.tensor(image)[:, None])[1:].mean().item()


@pytest.mark.parametrize("seed", range(4))
def test_untrained_it_copies_the_context_that_has_been_right(seed):
    model, (one, other, stranger) = started(), documents(3, seed)
    for contexts in ([one, other], [other, one]):
        drawn = preferred(model, one, contexts)
        assert share(drawn, one.image) > 2 * share(drawn, other.image)
        assert share(drawn, one.image) > 3 / CODES
    alone = preferred(model, stranger, [one, other])
    assert share(alone, one.image) < 0.5 * share(preferred(model, one, [one, other]), one.image)


def test_without_contexts_nothing_is_copied():
    model, (main,) = started(), documents(1, 7)
    drawn = preferred(model, main, [])
    assert share(drawn, main.image) < 4 / CODES


def test_vanilla_starts_the_same_way_with_one_slot():
    blocks = induction_blocks(width=96, heads=3, num_slots=1)
    wide = induction_blocks(width=96, heads=3, num_slots=3)
    for name in ("own", "code", "prev", "copied"):
        mine, theirs = getattr(blocks, name), getattr(wide, name)
        assert mine.stop - mine.start == theirs.stop - theirs.start
    read = make(num_slots=1).output.weight[:, blocks.copied]
    assert read.norm(dim=1).median() > 0


def test_places_are_spread_apart():
    vectors = spread_vectors(95, 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((95,), 4.0))
    cosines = vectors @ vectors.T / 16
    assert (cosines - 2 * torch.eye(95)).max() < 0.45


def test_image_embeddings_start_from_the_codebook_and_are_read_where_copies_are_written():
    model, codes = make(), codebook()
    codes[1] = codes[0]
    before = model.tokens.weight.detach().clone()
    start_image_embeddings(model, codes, generator=torch.Generator().manual_seed(4))
    blocks = induction_blocks(width=96, heads=3, num_slots=3)
    ids = slice(VOCABULARY.image_range.start, VOCABULARY.image_range.stop)
    rows, output = model.tokens.weight[ids], model.output.weight[ids]
    assert torch.equal(model.tokens.weight[: ids.start], before[: ids.start])
    assert torch.equal(rows[0, blocks.code], rows[1, blocks.code])
    cosine = torch.nn.functional.cosine_similarity(rows[:, blocks.code], output[:, blocks.copied])
    torch.testing.assert_close(cosine, torch.ones(CODES))
    with pytest.raises(ValueError, match="codes"):
        start_image_embeddings(model, codes[:3], generator=torch.Generator())


def test_without_an_induction_start_angles_between_codes_are_kept():
    model, codes = make(induction_start=False), codebook()
    start_image_embeddings(model, codes, generator=torch.Generator().manual_seed(4))
    rows = model.tokens.weight.detach()[VOCABULARY.image_range.start :][:CODES]
    centred = codes - codes.mean(0)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(rows[0], rows[1], dim=0), cosine(centred[0], centred[1], dim=0), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_embeddings": True}, "tie_embeddings false"),
        ({"positions": "rope"}, 'positions "document"'),
        ({"layers": 1}, "two layers"),
        ({"heads": 24}, "8 channels"),
        ({"heads": 2}, "channels in all"),
    ],
)
def test_what_it_needs_is_said(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)
