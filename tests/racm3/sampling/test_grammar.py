import pytest

from racm3.sampling.grammar import Grammar
from racm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(5, 4, 2)
IMAGE = VOCABULARY.image_range
TEXT = VOCABULARY.text_range


def allowed(grammar):
    return set(grammar.allowed(VOCABULARY).nonzero()[:, 0].tolist())


def walk(grammar, rng):
    """Ids of any continuation, drawn among those allowed, and the state it ends in."""
    ids = []
    while not grammar.done:
        ids.append(int(rng.choice(sorted(allowed(grammar)))))
        grammar = grammar.advance(ids[-1], VOCABULARY)
    return ids, grammar


def test_any_image_has_exactly_its_codes(cases):
    for rng in cases:
        height, width = rng.integers(1, 5, 2).tolist()
        ids, grammar = walk(Grammar("image", height * width), rng)
        assert len(ids) == height * width
        assert all(token_id in IMAGE for token_id in ids)
        assert not grammar.closed


def test_any_caption_is_text_closed_by_one_eoss(cases):
    for rng in cases:
        room = int(rng.integers(1, 12))
        ids, grammar = walk(Grammar("text", room), rng)
        assert 1 <= len(ids) - 1 <= room
        assert all(token_id in TEXT for token_id in ids[:-1])
        assert ids[-1] == VOCABULARY.eoss_id
        assert grammar.closed


def test_an_image_has_exactly_its_codes_and_nothing_else():
    grammar = Grammar("image", 3)
    for _ in range(3):
        assert allowed(grammar) == set(IMAGE)
        grammar = grammar.advance(IMAGE.start, VOCABULARY)
    assert grammar.done
    assert allowed(grammar) == set()


def test_a_caption_is_never_empty_and_ends_when_it_says_so_or_is_full():
    grammar = Grammar("text", 2)
    assert allowed(grammar) == set(TEXT)
    grammar = grammar.advance(TEXT.start, VOCABULARY)
    assert allowed(grammar) == {*TEXT, VOCABULARY.eoss_id}
    full = grammar.advance(TEXT.start, VOCABULARY)
    assert allowed(full) == {VOCABULARY.eoss_id}
    assert full.advance(VOCABULARY.eoss_id, VOCABULARY).done


@pytest.mark.parametrize("grammar", [Grammar("image", 2), Grammar("text", 2), Grammar("image", 0)])
def test_what_is_allowed_is_what_can_be_written(grammar):
    for token_id in range(VOCABULARY.size):
        if token_id in allowed(grammar):
            grammar.advance(token_id, VOCABULARY)
        else:
            with pytest.raises(ValueError, match="may not come next"):
                grammar.advance(token_id, VOCABULARY)
