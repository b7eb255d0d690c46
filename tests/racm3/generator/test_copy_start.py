import pytest
import torch

from racm3.generator.config import GeneratorConfig, named_config
from racm3.generator.copy_start import start_image_embeddings
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(20, 16, 2)
PLACES = 40


def make(**changes):
    config = named_config("tiny", positions="document", num_places=PLACES, **changes)
    return Generator(config, VOCABULARY, generator=torch.Generator().manual_seed(0)).eval()


def codebook():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def test_every_place_is_looked_up_by_the_query_for_it():
    model = make()
    D, C = model.config.head_width, model.config.width
    for block in list(model.blocks)[:2]:
        weight = block.attention.qkv.weight
        queries = model.next_places.weight @ weight[:D].T
        keys = model.own_places.weight @ weight[C : C + D].T
        assert (queries @ keys.T).argmax(1).equal(torch.arange(PLACES))


def test_untrained_it_prefers_the_code_that_a_context_has_at_the_place():
    model = make()
    start_image_embeddings(model, codebook(), generator=torch.Generator().manual_seed(4))
    first = VOCABULARY.image_range.start
    context = torch.randint(0, 16, (8, 10), generator=torch.Generator().manual_seed(5))
    ids = torch.cat([first + context, torch.full((8, 1), VOCABULARY.break_id)], 1)
    own = torch.cat([torch.arange(10), torch.tensor([30])]).expand(8, 11)
    asked = torch.arange(8) % 10
    following = own.roll(-1, 1).clone()
    following[:, -1] = asked
    slots = torch.ones(8, 11, dtype=torch.int64)
    with torch.no_grad():
        logits = model(ids, own, following, slots)[:, -1, first : first + 16]
    right = context[torch.arange(8), asked]
    rank = (logits > logits.gather(1, right[:, None])).sum(1).float().mean()
    assert rank < 4  # of 16; chance is 7.5


def test_image_embeddings_start_from_the_codebook():
    model, codes = make(), codebook()
    codes[1] = codes[0]
    before, D = model.tokens.weight.detach().clone(), model.config.head_width
    start_image_embeddings(model, codes, generator=torch.Generator().manual_seed(4))
    ids = VOCABULARY.image_range
    rows = model.tokens.weight[ids.start : ids.stop]
    assert torch.equal(model.tokens.weight[: ids.start], before[: ids.start])
    assert torch.equal(rows[0, 2 * D : 3 * D], rows[1, 2 * D : 3 * D])
    assert not rows[:, : 2 * D].any()
    with pytest.raises(ValueError, match="codes"):
        start_image_embeddings(model, codes[:3], generator=torch.Generator())


def test_without_a_copy_head_angles_between_codes_are_kept():
    model, codes = make(copy_head=False), codebook()
    start_image_embeddings(model, codes, generator=torch.Generator().manual_seed(4))
    rows = model.tokens.weight.detach()[VOCABULARY.image_range.start :][:16]
    centred = codes - codes.mean(0)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(rows[0], rows[1], dim=0), cosine(centred[0], centred[1], dim=0), atol=1e-4, rtol=0
    )


def test_two_heads_are_too_few():
    with pytest.raises(ValueError, match="3 heads"):
        GeneratorConfig(layers=1, width=16, heads=2, positions="document", num_places=4)
