"""Tokens a second of our training step, against Hugging Face's GPT-2 of the same shape.

Same numbers of layers, width, heads, feed-forward, vocabulary and positions, so the same number of
parameters (checked); the same batch, the same optimiser, the same threads; forward, backward and
AdamW, in turns. Ours is timed with logits at every position, as GPT-2 has them, and as it trains:
without those of labels of weight 0 (padding, sentinels; with alpha 0 the contexts, too).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from measure import machine, say, show, take_turns
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import logging as peer_logging

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.objective.loss import weighted_loss
from racm3.sequence.batch import Batch
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.generator import kept
from racm3.training.stream import StreamConfig, draw_batch
from racm3.vocabulary import Vocabulary

LEARNING_RATE = 1e-4
_IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of both models, and of their batch."""

    layers: int
    width: int
    heads: int
    ffn: int
    text_size: int
    image_size: int
    image_tokens: int
    caption: int
    """Longest caption, tokens."""
    rows: int
    steps: int
    """A round."""


SHAPES = {
    "emoji": Shape(
        layers=2, width=96, heads=4, ffn=192, text_size=512, image_size=256, image_tokens=64,
        caption=12, rows=8, steps=8,
    ),
    "middle": Shape(
        layers=4, width=256, heads=4, ffn=1024, text_size=4096, image_size=1024, image_tokens=144,
        caption=24, rows=4, steps=1,
    ),
}  # fmt: skip
"""That of the recipe `emoji`, and one between it and the 125M of RA-CM3's scaling study."""


def layout_of(shape: Shape) -> Layout:
    """Of the batch."""
    vocabulary = Vocabulary(text_size=shape.text_size, image_size=shape.image_size)
    return Layout(
        vocabulary=vocabulary, image_tokens=shape.image_tokens, max_text_tokens=shape.caption
    )


def batch_of(shape: Shape, layout: Layout, *, alpha: float) -> Batch:
    """A batch of RA-CM3's stream with two contexts a row, of documents of random tokens."""
    rng = np.random.default_rng(0)

    def document() -> DocumentTokens:
        words = rng.integers(0, shape.text_size, rng.integers(3, shape.caption + 1))
        codes = rng.integers(0, shape.image_size, shape.image_tokens)
        return DocumentTokens(text=tuple(words.tolist()), image=tuple(codes.tolist()))

    def example(number: int) -> Example:
        found = QueryContexts(
            query="text", draw=0, document_ids=("a", "b"), contexts=(document(), document())
        )
        return Example(
            example_id=str(number), document_id=str(number), main=document(), queries=(found,)
        )

    config = StreamConfig(
        batch_size=shape.rows, alpha=alpha, max_text_tokens=shape.caption, max_length=4096
    )
    examples = [example(number) for number in range(4 * shape.rows)]
    for step in range(100):  # the first that drew two contexts
        batch, record = draw_batch(examples, layout=layout, config=config, seed=0, step=step)
        if all(len(row.context_ids) == 2 for row in record.rows):
            return batch
    raise AssertionError("a third of the steps has two contexts")


def models(shape: Shape, layout: Layout, length: int) -> tuple[Generator, nn.Module]:
    """Ours and GPT-2, of equally many parameters."""
    vocabulary = layout.vocabulary
    ours = Generator(
        GeneratorConfig(
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            ffn=shape.ffn,
            max_length=length,
            positions="sequence",
            activation="gelu",
        ),
        vocabulary,
        generator=torch.Generator().manual_seed(0),
    )
    peer_logging.set_verbosity_error()
    config = GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        n_inner=shape.ffn,
        n_positions=length,
        vocab_size=vocabulary.size,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=vocabulary.document_end_id,
        eos_token_id=vocabulary.document_end_id,
        use_cache=False,
    )
    peer = GPT2LMHeadModel(config)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, peer)]
    if sizes[0] != sizes[1]:
        raise SystemExit(f"The shapes differ: {sizes[0]} parameters against {sizes[1]}.")
    return ours.train(), peer.train()


def steps(model: nn.Module, loss: Callable[[], torch.Tensor], count: int) -> Callable[[], None]:
    """`count` steps of AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True
    )

    def run() -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

    return run


def measure(name: str, rounds: int, threads: int) -> None:
    """Times one shape and prints its table."""
    shape = SHAPES[name]
    layout = layout_of(shape)
    batch = batch_of(shape, layout, alpha=0.3)
    narrow = batch_of(shape, layout, alpha=0.0)
    rows, length = batch.input_ids.shape
    ours, peer = models(shape, layout, length)
    everywhere = replace(batch, weights=torch.ones_like(batch.weights))
    ignoring = batch.labels.masked_fill(batch.weights == 0, _IGNORED)

    def full() -> torch.Tensor:
        return weighted_loss(ours(batch.input_ids), everywhere).loss

    def as_trained(given: Batch) -> torch.Tensor:
        keep, labels = kept(given)
        return weighted_loss(ours(given.input_ids, keep=keep)[None], labels).loss

    def gpt2() -> torch.Tensor:
        # its own shift is undone: our labels are shifted already
        found = peer(input_ids=batch.input_ids, labels=ignoring, shift_labels=ignoring)
        loss: torch.Tensor = found.loss
        return loss

    work = {
        "GPT-2 (transformers)": steps(peer, gpt2, shape.steps),
        "ours, all logits": steps(ours, full, shape.steps),
        "ours, as it trains": steps(ours, lambda: as_trained(batch), shape.steps),
        "ours, as it trains, alpha 0": steps(ours, lambda: as_trained(narrow), shape.steps),
    }

    def timed(run: Callable[[], None]) -> Callable[[int], int]:
        def one_round(turn: int) -> int:
            del turn
            run()
            return rows * length * shape.steps

        return one_round

    say(f"shape {name}: {rows} rows of {length} tokens, {shape.steps} steps a round")
    rates = take_turns({key: timed(run) for key, run in work.items()}, rounds=rounds)
    weighted = float((batch.weights > 0).float().mean())
    narrowed = float((narrow.weights > 0).float().mean())
    show(
        f"Training, shape {name}: tokens a second",
        rates,
        rates[0],
        {
            "shape": f"{shape.layers} layers x {shape.width}, {shape.heads} heads, feed-forward "
            f"{shape.ffn}, vocabulary {layout.vocabulary.size}, "
            f"{sum(p.numel() for p in ours.parameters()):,} parameters",
            "batch": f"{rows} x {length}; labels with weight: {weighted:.0%}, at alpha 0 "
            f"{narrowed:.0%}",
            "machine": machine(threads),
        },
    )


def main() -> None:
    """Times the shapes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="1, as in the pipeline's workers")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.shapes:
        measure(name, given.rounds, given.threads)


if __name__ == "__main__":
    main()
