import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.blocks import channels_of, induction_blocks
from racm3.generator.config import GeneratorConfig
from racm3.generator.induction_start import start_image_embeddings, start_induction
from racm3.generator.transformer import Generator
from racm3.sequence.layout import Layout
from racm3.training.evaluation import evaluation_batch
from racm3.training.examples import Example
from racm3.vocabulary import Vocabulary

CODES, GRID, CAPTION = 64, (6, 6), 4
CELLS = GRID[0] * GRID[1]
VOCABULARY = Vocabulary(text_size=20, image_size=CODES, num_sentinels=2)
LAYOUT = Layout(vocabulary=VOCABULARY, image_tokens=CELLS, max_text_tokens=CAPTION)


def make(*, num_slots=3, **changes):
    shape = {"layers": 2, "width": 128, "heads": 4, "positions": "document", "init_std": 0.1}
    shape |= {"num_places": LAYOUT.places.size, "tie_embeddings": False, "num_slots": num_slots}
    config = GeneratorConfig(**shape | changes)
    return Generator(config, VOCABULARY, generator=torch.Generator().manual_seed(0)).eval()


def codebook():
    return torch.randn(CODES, 16, generator=torch.Generator().manual_seed(3))


def start(model, codes=None):
    draw = torch.Generator().manual_seed(4)
    codes = codebook() if codes is None else codes
    start_induction(model, LAYOUT.places, GRID, codes, generator=draw)
    return model


def documents(count, seed):
    """Documents of random codes, no code twice in a row."""
    steps = np.random.default_rng(seed).integers(1, CODES, (count, CELLS))
    images = steps.cumsum(axis=1) % CODES
    return [DocumentTokens(text=(1, 2, 3), image=tuple(image.tolist())) for image in images]


def preferred(model, main, contexts):
    """Probabilities of the codes at each place of the main document's image, [CELLS, CODES]."""
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
    model, (one, other, stranger) = start(make()), documents(3, seed)
    for contexts in ([one, other], [other, one]):
        drawn = preferred(model, one, contexts)
        assert share(drawn, one.image) > 2 * share(drawn, other.image)
        assert share(drawn, one.image) > 8 / CODES  # the sink must not out-shout agreement
    alone = preferred(model, stranger, [one, other])
    assert share(alone, one.image) < 0.5 * share(preferred(model, one, [one, other]), one.image)


def test_without_contexts_nothing_is_copied():
    model, (main,) = start(make()), documents(1, 7)
    drawn = preferred(model, main, [])
    assert share(drawn, main.image) < 4 / CODES


def test_what_stands_to_the_left_and_above_is_found():
    model, (main,) = start(make()), documents(1, 3)
    example = Example(example_id="e", document_id="d", main=main, queries=())
    batch = evaluation_batch([example], layout=LAYOUT, task="image", k=0)
    with torch.no_grad():
        x = model._embed(batch.input_ids, batch.places, batch.next_places, batch.slots)
        after = x + model.blocks[0].attention(model.blocks[0].attention_norm(x), None)
    blocks = induction_blocks(width=128, heads=4, num_slots=3)
    own, base = batch.places[0].tolist(), LAYOUT.places.image_base
    inside = {place: i for i, place in enumerate(own) if base <= place < base + CELLS}
    cosine = torch.nn.functional.cosine_similarity
    found = {"left": [], "above": [], "above_next": []}
    for place, i in inside.items():
        for name, other in (("left", place - 1), ("above", place - 6), ("above_next", place - 5)):
            if other in inside:
                fetched = after[0, i, getattr(blocks, name)]
                found[name].append(cosine(fetched, x[0, inside[other], blocks.code], dim=0))
    for values in found.values():
        assert torch.stack(values).median() > 0.9


def attended(model, batch, *, layer, head):
    """Which position each position attends to most, [T]."""
    with torch.no_grad():
        x = model._embed(batch.input_ids, batch.places, batch.next_places, batch.slots)
        for block in model.blocks[:layer]:
            x = block(x, None)
        attention = model.blocks[layer].attention
        q, k, _ = attention.qkv(model.blocks[layer].attention_norm(x))[0].chunk(3, dim=1)
    D = attention.head_width
    logits = q[:, head * D : head * D + D] @ k[:, head * D : head * D + D].T
    future = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return logits.masked_fill(future, -torch.inf).argmax(dim=1)


def test_one_head_a_context_reads_what_it_has_at_the_next_place():
    model, (main, first, second) = start(make()), documents(3, 5)
    example = Example(example_id="e", document_id="d", main=main, queries=())
    for contexts in ([first, second], [first]):
        batch = evaluation_batch([example], layout=LAYOUT, task="image", k=2, contexts=[contexts])
        own, asked = batch.places[0], batch.next_places[0]
        asking = batch.weights[0] > 0
        for slot in range(1, 1 + len(contexts)):
            found = attended(model, batch, layer=1, head=1 + slot)[asking]
            assert (batch.slots[0, found] == slot).all()
            assert (own[found] == asked[asking]).all()


def test_vanilla_starts_the_same_way_with_one_slot():
    blocks = induction_blocks(width=128, heads=4, num_slots=1)
    wide = induction_blocks(width=128, heads=4, num_slots=3)
    for name in ("own", "code", "left", "copied"):
        assert channels_of(getattr(blocks, name)) == channels_of(getattr(wide, name))
    start(make(num_slots=1))


def test_codes_are_read_where_copies_are_written():
    model, codes = make(), codebook()
    codes[1] = codes[0]
    before = model.tokens.weight.detach().clone()
    start(model, codes)
    blocks = induction_blocks(width=128, heads=4, num_slots=3)
    ids = slice(VOCABULARY.image_range.start, VOCABULARY.image_range.stop)
    rows, output = model.tokens.weight[ids], model.output.weight[ids]
    words = slice(VOCABULARY.text_range.start, VOCABULARY.text_range.stop)
    assert torch.equal(model.tokens.weight[words, blocks.free], before[words, blocks.free])
    assert torch.equal(rows[0, blocks.code], rows[1, blocks.code])
    cosine = torch.nn.functional.cosine_similarity(rows[:, blocks.code], output[:, blocks.copied])
    torch.testing.assert_close(cosine, torch.ones(CODES))


def test_without_an_induction_start_angles_between_codes_are_kept():
    model, codes = make(), codebook()
    start_image_embeddings(model, codes, generator=torch.Generator().manual_seed(4))
    rows = model.tokens.weight.detach()[VOCABULARY.image_range.start :][:CODES]
    centred = codes - codes.mean(0)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(rows[0], rows[1], dim=0), cosine(centred[0], centred[1], dim=0), atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="codes"):
        start_image_embeddings(model, codes[:3], generator=torch.Generator())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_embeddings": True}, "tie_embeddings false"),
        ({"positions": "rope"}, 'positions "document"'),
        ({"layers": 1}, "two layers"),
        ({"heads": 32}, "multiple of 8"),
        ({"heads": 2}, "3 heads"),
        ({"width": 96, "heads": 3, "num_slots": 9}, "channels in all"),
        ({"width": 96, "heads": 3, "num_slots": 3}, "more than 96 channels"),
    ],
)
def test_what_it_needs_is_said(changes, said):
    with pytest.raises(ValueError, match=said):
        start(make(**changes))
