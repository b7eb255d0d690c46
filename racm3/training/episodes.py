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
from typing import Literal

import numpy as np

from racm3.training.examples import Example, QueryContexts
from racm3.vocabulary import Vocabulary

__all__ = ["EpisodeSources", "Kinds", "as_episode", "has_episodes", "kinds_of"]

Kinds = Mapping[str, Sequence[int]]
"""Places of examples, by category."""
EpisodeSources = Literal["any", "others"]
"""Which sources the contexts of an episode are of: any, or others than the main document's.

Who is asked about things after what others drew is trained by `others`: two drawings by one hand
are alike in what says nothing of their kind.
"""
_MOST_LABEL_TOKENS = 3


def kinds_of(examples: Sequence[Example]) -> Kinds:
    """Where the examples of each category are."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        if example.category is not None:
            found[example.category].append(place)
    return found


def has_episodes(examples: Sequence[Example], sources: EpisodeSources = "any") -> bool:
    """Whether any example has an episode.

    Some two of a category differ in concept and in source if and only if the category has two of
    either: cells of a grid that share their row or column two by two are all in one of them.
    """
    for places in kinds_of(examples).values():
        of_kind = [examples[place] for place in places]
        two_sources = sources == "any" or len({one.source for one in of_kind}) > 1
        if two_sources and len({one.concept for one in of_kind}) > 1:
            return True
    return False


def as_episode(
    example: Example,
    k: int,
    examples: Sequence[Example],
    kinds: Kinds,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    *,
    sources: EpisodeSources = "any",
) -> Example | None:
    """The example with k documents of its category for contexts, under one made-up caption.

    Args:
        example: One of the examples.
        k: Contexts, >= 1; as many as there are, where these are fewer.
        examples: What is trained on.
        kinds: See `kinds_of`.
        vocabulary: Whose text tokens the caption is made of, one to three.
        generator: What is drawn from.
        sources: Which sources the contexts are of.

    Returns:
        An example with one query; None where nothing of its category may be shown.
    """
    places = kinds.get(example.category or "", ())
    others = [
        place
        for place in places
        if examples[place].concept != example.concept
        and (sources == "any" or examples[place].source != example.source)
    ]
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
