"""Episodes: rows that are asked as in-context classification asks.

What is retrieved shows the very thing that the main document shows, wherever the memory has it. So
a small generator learns to copy what is the same, and little of what documents of one kind have in
common. An episode shows other things of the kind: the contexts are documents of the main document's
category, of other concepts, and all captions are one word that is made up anew each time. What the
contexts have in common is then all that can tell of the image. It is what few-shot classification
by channel asks (`racm3.sampling.channel`), with categories that are trained on.

Not in RA-CM3's paper, whose generator sees enough contexts that are alike and not the same. As rows
of in-context tasks among others: MetaICL (arXiv:2110.15943).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from racm3.training.examples import Example, QueryContexts
from racm3.vocabulary import Vocabulary

__all__ = ["Kinds", "as_episode", "kinds_of"]

Kinds = Mapping[str, Sequence[int]]
"""Places of examples, by category."""
_MOST_LABEL_TOKENS = 3


def kinds_of(examples: Sequence[Example]) -> Kinds:
    """Where the examples of each category are."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        if example.category is not None:
            found[example.category].append(place)
    return found


def as_episode(
    example: Example,
    k: int,
    examples: Sequence[Example],
    kinds: Kinds,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
) -> Example | None:
    """The example with k documents of its category for contexts, under one made-up caption.

    Args:
        example: One of the examples.
        k: Contexts, >= 1; as many as there are, where these are fewer.
        examples: What is trained on.
        kinds: See `kinds_of`.
        vocabulary: Whose text tokens the caption is made of, one to three.
        generator: What is drawn from.

    Returns:
        An example with one query; None where nothing else of its category is there.
    """
    places = kinds.get(example.category or "", ())
    others = [place for place in places if examples[place].concept != example.concept]
    if not others:
        return None
    chosen = generator.permutation(len(others))[:k]
    shown = [examples[others[int(place)]] for place in chosen]
    length = int(generator.integers(1, _MOST_LABEL_TOKENS + 1))
    label = tuple(generator.integers(vocabulary.text_size, size=length).tolist())
    query = QueryContexts(
        query="text",
        draw=0,
        document_ids=tuple(one.document_id for one in shown),
        contexts=tuple(replace(one.main, text=label) for one in shown),
    )
    return replace(example, main=replace(example.main, text=label), queries=(query,))
