"""Tokens a second of the sampler with cache and shared prompts, against a plain sampler.

The plain sampler has no cache: it reads prompt and all codes so far again for every code of every
candidate. Both draw the same ids, with guidance and noise as in the recipe: this is checked first
(in double precision, since sums of other orders round otherwise), then timed, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import machine, say, show, take_turns
from torch import Tensor

from flows.recipes import load_run
from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.sampling.candidates import candidate_seeds
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.logits import distribution, draw, guide
from racm3.sampling.tasks import Prompt, sample_images
from racm3.sequence.layout import Layout
from racm3.sequence.places import PlaceCursor
from racm3.vocabulary import Vocabulary

CAPTION, CONTEXTS, CANDIDATES = 8, 2, 8
CODES = 64


def emoji_generator(seed: int = 0) -> tuple[Generator, Layout]:
    """The generator of the recipe `emoji`, untrained: its speed does not depend on its weights."""
    run = load_run("emoji")
    shape = run.generators["ra"]
    vocabulary = Vocabulary(
        text_size=run.text_tokenizer.vocab_size,
        image_size=run.image_tokenizer.model.codebook_size,
        num_sentinels=shape.num_sentinels,
    )
    layout = Layout(vocabulary=vocabulary, image_tokens=CODES, max_text_tokens=run.max_text_tokens)
    config = GeneratorConfig(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        ffn=shape.ffn,
        max_length=shape.max_length,
        positions=shape.positions,
        num_places=layout.places.size,
        num_slots=shape.stream.max_k + 1,
        tie_embeddings=shape.tie_embeddings,
        activation=shape.activation,
        init_std=shape.init_std,
    )
    model = Generator(config, vocabulary, generator=torch.Generator().manual_seed(seed))
    return model.eval(), layout


def stored_generator(folder: str) -> tuple[Generator, Layout]:
    """The trained RA-CM3 of the recipe `emoji` in a store."""
    from pipelines.models import load_generator
    from pipelines.runtime.catalog import read_ref
    from pipelines.runtime.reader import Reader, Selection
    from pipelines.runtime.store import LocalStore

    store = LocalStore(Path(folder))
    manifest = read_ref(store, "emoji", "generator.ra")
    if manifest is None:
        raise SystemExit(f"{folder} has no generator of the recipe emoji: racm3 run emoji")
    loaded = load_generator(Reader(store).files(Selection.of(manifest)))
    return loaded.model.cpu(), loaded.layout


def prompts(count: int, layout: Layout, first: int = 0) -> list[Prompt]:
    """Captions with two contexts each, of random tokens."""
    return [_prompt(layout, np.random.default_rng([1, first + i])) for i in range(count)]


def _prompt(layout: Layout, rng: np.random.Generator) -> Prompt:
    words, codes = layout.vocabulary.text_size, layout.vocabulary.image_size

    def text() -> tuple[int, ...]:
        return tuple(rng.integers(0, words, CAPTION).tolist())

    contexts = tuple(
        DocumentTokens(text=text(), image=tuple(rng.integers(0, codes, layout.image_tokens)))
        for _ in range(CONTEXTS)
    )
    return Prompt(contexts=contexts, text=text())


def candidates(asked: Sequence[Prompt], each: int) -> tuple[list[Prompt], list[int]]:
    """Every prompt as often as it has candidates, and their seeds."""
    seeds = [seed for i in range(len(asked)) for seed in candidate_seeds(i, each)]
    return [prompt for prompt in asked for _ in range(each)], seeds


def with_cache(
    model: Generator,
    layout: Layout,
    asked: Sequence[Prompt],
    each: int,
    config: SamplingConfig,
) -> list[tuple[int, ...]]:
    """Codes of all candidates by the sampler of `racm3.sampling`."""
    every, seeds = candidates(asked, each)
    return [s.document.image for s in sample_images(model, layout, every, config, seeds=seeds)]


@torch.no_grad()
def without_cache(
    model: Generator,
    layout: Layout,
    asked: Sequence[Prompt],
    each: int,
    config: SamplingConfig,
) -> list[tuple[int, ...]]:
    """The same by reading everything again for every code; guidance by a prompt without anything.

    Like the sampler it predicts at the last position only: not reading is what is measured.
    """
    every, seeds = candidates(asked, each)
    drawn: list[tuple[int, ...]] = []
    codes = layout.vocabulary.image_range
    for start in range(0, len(every), config.batch_size):
        part = every[start : start + config.batch_size]
        noise = [torch.Generator().manual_seed(s) for s in seeds[start : start + len(part)]]
        rows = [_ids(prompt, layout) for prompt in part]
        null = [_null_ids(layout) for _ in part]
        written: list[list[int]] = [[] for _ in part]
        for _ in range(layout.image_tokens):
            logits = guide(
                _last_logits(model, layout, rows, written, CONTEXTS),
                _last_logits(model, layout, null, written, 0),
                config.guidance,
            )
            allowed = torch.full_like(logits, -torch.inf)
            allowed[:, codes.start : codes.stop] = logits[:, codes.start : codes.stop]
            probabilities = distribution(
                allowed, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
            )
            uniforms = [torch.rand((), generator=g, dtype=torch.float64) for g in noise]
            for row, token in enumerate(draw(probabilities, torch.stack(uniforms)).tolist()):
                written[row].append(token)
        drawn += [tuple(i - codes.start for i in row) for row in written]
    return drawn


def _ids(prompt: Prompt, layout: Layout) -> list[int]:
    vocabulary = layout.vocabulary
    ids = [vocabulary.document_end_id]
    for document in prompt.contexts:
        ids += [*map(vocabulary.to_text_id, document.text), vocabulary.break_id]
        ids += [*map(vocabulary.to_image_id, document.image), vocabulary.break_id]
    return [*ids, *map(vocabulary.to_text_id, prompt.text or ()), vocabulary.break_id]


def _null_ids(layout: Layout) -> list[int]:
    vocabulary = layout.vocabulary
    return [vocabulary.document_end_id, vocabulary.sentinel_id(0), vocabulary.break_id]


def _last_logits(
    model: Generator,
    layout: Layout,
    rows: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    num_contexts: int,
) -> Tensor:
    """Logits of the next id, float32 [B, V], of rows of one length."""
    ids = [[*row, *codes] for row, codes in zip(rows, written, strict=True)]
    placed = [
        PlaceCursor(layout.places, layout.vocabulary, num_contexts=num_contexts).feed(row)
        for row in ids
    ]
    own, following, slots = (
        torch.from_numpy(np.stack(parts)) for parts in zip(*placed, strict=True)
    )
    keep = torch.zeros(own.shape, dtype=torch.bool)
    keep[:, -1] = True
    logits: Tensor = model(torch.tensor(ids), own, following, slots, keep=keep).float()
    return logits


def main() -> None:
    """Checks, times and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="with the cache")
    parser.add_argument("--plain-images", type=int, default=8, help="without, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="1, as in the pipeline's workers")
    parser.add_argument("--store", help="folder with the recipe `emoji` trained; else untrained")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, layout = stored_generator(given.store) if given.store else emoji_generator()
    config = load_run("emoji").generate.images
    few = prompts(4, layout)
    model.double()
    same = with_cache(model, layout, few, 2, config) == without_cache(model, layout, few, 2, config)
    model.float()
    if not same:
        raise SystemExit("The samplers draw other ids from the same noise: one of them is wrong.")
    say("both samplers draw the same ids (4 images, 2 candidates each, double precision)")
    shares = [[0], *np.array_split(np.arange(given.images), given.rounds)]

    def cached(turn: int) -> int:
        asked = prompts(len(shares[turn]), layout, first=int(shares[turn][0]))
        return len(with_cache(model, layout, asked, CANDIDATES, config)) * layout.image_tokens

    def plain(turn: int) -> int:
        asked = prompts(given.plain_images if turn else 1, layout)
        return len(without_cache(model, layout, asked, CANDIDATES, config)) * layout.image_tokens

    rates = take_turns({"cache, shared prompts": cached, "no cache": plain}, rounds=given.rounds)
    show(
        f"Sampling {given.images} images, {CANDIDATES} candidates each: image tokens a second",
        rates,
        rates[1],
        {
            "generator": f"recipe emoji, {'trained' if given.store else 'untrained'}",
            "prompt": f"{CONTEXTS} contexts, captions of {CAPTION} tokens, guidance "
            f"{config.guidance}, {config.batch_size} rows together on both sides",
            "without cache": f"{given.plain_images} images a round",
            "machine": machine(given.threads),
        },
    )


if __name__ == "__main__":
    main()
