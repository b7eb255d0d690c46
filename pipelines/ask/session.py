"""The tasks: generate, caption, infill, edit, demonstrate, classify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.ask.answer import Answer, candidate_facts
from pipelines.ask.artifacts import Artifacts
from pipelines.ask.classifying import Classified, classify_given
from pipelines.ask.given import Given, read_given
from pipelines.ask.question import HOLE, Question, Settings, told
from pipelines.ask.retrieving import contexts_for, fed
from pipelines.errors import UsageError
from pipelines.generation.ranking import ClipRanker, Rank, picture
from pipelines.models import pin_threads
from pipelines.records import order_of
from pipelines.runtime.store import Store
from racm3.sampling.holes import Box
from racm3.sequence.order import context_order

if TYPE_CHECKING:
    from racm3.sampling.candidates import Chosen
    from racm3.sampling.decode import SamplingConfig
    from racm3.sampling.tasks import Prompt, Sampled

__all__ = ["Session"]

_GREY = 127

Draw = Callable[["list[Prompt]", "Sequence[int]"], "list[Sampled]"]


class Session:
    """A generator and its memory, to be asked.

    Raises:
        UsageError: when something was never made; a task raises it, too, where what it needs does
            not fit to the generator.
    """

    def __init__(self, store: Store, namespace: str, settings: Settings) -> None:
        pin_threads()
        self.settings = settings
        self.artifacts = Artifacts(store, namespace, model=settings.model, memory=settings.memory)

    def read(self, text: str) -> Given:
        """A picture or a document that a person names: see `pipelines.ask.given.read_given`."""
        return read_given(self.artifacts, text)

    # --- tasks ----------------------------------------------------------------------------

    def generate(self, prompt: str) -> Answer:
        """Draws an image from a caption, with what the caption retrieves."""
        asked = Question(task="generate", kind="image", caption=told(prompt, "prompt"))
        self._retrieve(asked, caption=asked.caption)
        return self._draw_image(asked)

    def demonstrate(self, prompt: str, demonstrations: Sequence[Given]) -> Answer:
        """Draws an image from a caption after documents that somebody picked, in their order."""
        asked = Question(task="demonstrate", kind="image", caption=told(prompt, "prompt"))
        self._supply(asked, demonstrations)
        return self._draw_image(asked)

    def caption(self, given: Given) -> Answer:
        """Writes a caption of a picture, with what the picture retrieves."""
        from racm3.sampling.tasks import sample_captions

        asked = Question(task="caption", kind="text", given=[given])
        self._retrieve(asked, pixels=given.pixels, without=given.document_id)
        loaded, how = self.artifacts.loaded, self.settings.sampling("text")
        chosen, candidates = self._choose(
            asked,
            lambda prompts, seeds: sample_captions(
                loaded.model, loaded.layout, prompts, how, seeds=seeds
            ),
            image=given.codes,
        )
        return self._answer(asked, chosen, candidates)

    def infill(self, given: Given, box: Box, caption: str | None = None) -> Answer:
        """Draws a box of a picture anew, with what its caption (else what is seen) retrieves."""
        caption = given.caption if caption is None else caption
        asked = Question(task="infill", kind="image", caption=caption or "", given=[given])
        asked.box, asked.canvas_box = box, given.on_canvas(box)
        pixels = given.pixels.copy()
        left, top, right, bottom = asked.canvas_box.edges
        pixels[top:bottom, left:right] = _GREY
        self._retrieve(asked, caption=caption or None, pixels=pixels, without=given.document_id)
        return self._draw_box(asked)

    def infill_text(self, given: Given, caption: str) -> Answer:
        """Writes what stands at the hole of a caption, with what the picture retrieves.

        Raises:
            UsageError: when the caption has no hole, more than one, or no room for it.
        """
        from racm3.sampling.tasks import infill_captions

        if caption.count(HOLE) != 1:
            raise UsageError(f"caption: mark the words to be written with one {HOLE}")
        asked = Question(task="infill", kind="text", caption=told(caption, "caption"))
        asked.given = [given]
        self._retrieve(asked, pixels=given.pixels, without=given.document_id)
        before, after = (asked.caption or "").split(HOLE)
        encode = self.artifacts.text.encode
        first, last = encode(before.rstrip()), encode(after)
        loaded, how = self.artifacts.loaded, self.settings.sampling("text")
        if len(first) + len(last) >= loaded.layout.max_text_tokens:
            raise UsageError(
                f"caption: around the hole it has {len(first) + len(last)} tokens and the "
                f"generator reads {loaded.layout.max_text_tokens}; give a shorter one"
            )
        chosen, candidates = self._choose(
            asked,
            lambda prompts, seeds: infill_captions(
                loaded.model,
                loaded.layout,
                prompts,
                [(len(first), len(first))] * len(prompts),
                how,
                seeds=seeds,
            ),
            text=(*first, *last),
            image=given.codes,
        )
        return self._answer(asked, chosen, candidates)

    def edit(
        self, given: Given, supplied: Given, caption: str | None = None, box: Box | None = None
    ) -> Answer:
        """Draws a box of a picture, or all of it, anew under a document that somebody supplies.

        Without a box the picture itself stands in front of the supplied document, as a context.

        Args:
            given: the picture.
            supplied: the document.
            caption: of the result; None: the supplied document's.
            box: pixels of the picture; None: all.
        """
        caption = caption or supplied.caption
        if not caption:
            raise UsageError("edit: give --caption, or a supplied document that has one")
        asked = Question(task="edit", kind="image", caption=told(caption, "caption"))
        if box is not None:
            asked.given = [given]
            asked.box, asked.canvas_box = box, given.on_canvas(box)
            self._supply(asked, [supplied])
            return self._draw_box(asked)
        self._supply(asked, [given, supplied] if self.artifacts.max_contexts > 1 else [supplied])
        return self._draw_image(asked)

    def classify(
        self, given: Given, classes: Mapping[str, Sequence[Given]], **how: Any
    ) -> Classified:
        """Tells the class of a picture: see `pipelines.ask.classifying.classify_given`."""
        return classify_given(self.artifacts, given, classes, **how)

    # --- contexts -------------------------------------------------------------------------

    def _retrieve(self, asked: Question, **query: Any) -> None:
        """Fills in what the memory says, and why it is less than was asked for."""
        held, wanted = self.artifacts.memory, self.settings.k
        k = min(wanted, self.artifacts.max_contexts)
        asked.reads_memory = k > 0
        found = contexts_for(self.artifacts, k=k, **query)
        order, chance = (
            order_of(self.artifacts.generator),
            np.random.default_rng(self.settings.seed),
        )
        asked.contexts = [found[rank] for rank in context_order(len(found), order, chance)]
        if k < wanted and self.artifacts.max_contexts:
            asked.notes.append(
                f"{wanted} contexts were asked for; this generator reads {k} at most"
            )
        if held is None and self.settings.memory is not None:
            asked.notes.append("this generator was trained without contexts: it asks no memory")
        elif held is not None and held.rows_out < k:
            asked.notes.append(
                f"{k} contexts were asked for; the memory holds {held.rows_out} documents"
            )
        elif len(asked.contexts) < k:
            asked.notes.append(
                f"{k} contexts were asked for; {len(asked.contexts)} passed the recipe's rules of "
                "relevance and diversity"
            )
        self._fit(asked)

    def _supply(self, asked: Question, documents: Sequence[Given]) -> None:
        """Fills in documents that somebody chose.

        Raises:
            UsageError: when there are none, or more than the generator reads.
        """
        most = self.artifacts.max_contexts
        if not most:
            raise UsageError(
                f"{asked.task}: generator {self.settings.model} was trained without contexts and "
                "reads none; choose another one with --model"
            )
        if not 0 < len(documents) <= most:
            raise UsageError(
                f"{asked.task}: {len(documents)} documents were given; generator "
                f"{self.settings.model} reads between 1 and {most}"
            )
        asked.given += documents
        asked.contexts = [fed(self.artifacts, one) for one in documents]
        self._fit(asked)

    def _fit(self, asked: Question) -> None:
        """Leaves out the last contexts where the generator's sequence cannot hold them."""
        loaded = self.artifacts.loaded
        layout, length = loaded.layout, int(loaded.model.config.max_length)
        main = layout.image_tokens + layout.max_text_tokens + 2
        room = length - main - 5  # `</s>`, and what marks a span
        sizes = [layout.document_length(context.tokens) for context in asked.contexts]
        kept = [c for c, used in zip(asked.contexts, np.cumsum(sizes), strict=True) if used <= room]
        if len(kept) < len(asked.contexts):
            asked.notes.append(
                f"{len(asked.contexts) - len(kept)} contexts were left out: a sequence has "
                f"{length} tokens at most"
            )
        asked.contexts = kept

    # --- drawing --------------------------------------------------------------------------

    def _draw_image(self, asked: Question) -> Answer:
        from racm3.sampling.tasks import sample_images

        loaded, how = self.artifacts.loaded, self.settings.sampling("image")
        chosen, candidates = self._choose(
            asked,
            lambda prompts, seeds: sample_images(
                loaded.model, loaded.layout, prompts, how, seeds=seeds
            ),
            text=self._tokens(asked),
        )
        return self._answer(asked, chosen, candidates)

    def _sampling(self, asked: Question) -> SamplingConfig:
        edit = asked.task == "edit" and asked.box is not None
        return self.settings.sampling(asked.kind, edit=edit)

    def _draw_box(self, asked: Question) -> Answer:
        from racm3.sampling.tasks import infill_images

        assert asked.canvas_box is not None
        images, how = self.artifacts.images, self._sampling(asked)
        side = images.image_size
        hole = asked.canvas_box.codes(size=(side, side), grid=images.grid)
        loaded = self.artifacts.loaded
        chosen, candidates = self._choose(
            asked,
            lambda prompts, seeds: infill_images(
                loaded.model, loaded.layout, prompts, [hole] * len(prompts), how, seeds=seeds
            ),
            text=self._tokens(asked),
            image=asked.given[0].codes,
        )
        return self._answer(asked, chosen, candidates)

    def _tokens(self, asked: Question) -> tuple[int, ...]:
        """Tokens of the caption given, cut to what the generator reads; the cut is recorded."""
        tokens = self.artifacts.text.encode(asked.caption or "")
        limit = self.artifacts.loaded.layout.max_text_tokens
        asked.cut = max(0, len(tokens) - limit)
        if asked.cut:
            asked.notes.append(
                f"the caption has {len(tokens)} tokens and the generator reads {limit}: "
                f"{asked.cut} were left out"
            )
        return tuple(tokens[:limit])

    def _rank(self, asked: Question) -> Rank:
        return self.settings.rank or ("clip" if asked.kind == "image" else "likelihood")

    def _choose(
        self, asked: Question, draw: Draw, **known: Any
    ) -> tuple[Chosen, list[dict[str, Any]]]:
        """The candidates of the one prompt, the best of them, and what is recorded of each."""
        from racm3.sampling.candidates import best_of, candidate_seeds
        from racm3.sampling.tasks import Prompt

        contexts = tuple(context.tokens for context in asked.contexts)
        prompt = Prompt(contexts=contexts, **known)
        count, seed = self.settings.candidates, self.settings.seed
        ranker = seen = None
        if count > 1 and self._rank(asked) == "clip":
            encoder = self.artifacts.encoder
            ranker = ClipRanker(encoder, self.artifacts.images, self.artifacts.text)
            if asked.kind != "image":
                seen = encoder.encode_images([asked.given[0].pixels]).repeat(count, axis=0)

        def score(_: Sequence[int], samples: Sequence[Sampled]) -> list[float]:
            assert ranker is not None
            return ranker.score(samples, seen)

        (chosen,) = best_of(
            lambda rows, seeds: draw([prompt] * len(rows), seeds),
            seeds=[seed],
            count=count,
            score=score if ranker else None,
        )
        return chosen, candidate_facts(chosen, candidate_seeds(seed, count))

    def _answer(self, asked: Question, chosen: Chosen, candidates: list[dict[str, Any]]) -> Answer:
        document, artifacts = chosen.best.document, self.artifacts
        image = asked.kind == "image"
        sampler: dict[str, Any] = self._sampling(asked).record()
        sampler |= {"candidates": len(candidates)}
        rank = self._rank(asked) if len(candidates) > 1 else None
        sampler |= {"rank": rank} if rank else {}
        return Answer(
            png=picture(artifacts.images, document.image) if image else None,
            text=None if image else artifacts.text.decode(list(document.text)),
            facts={
                "task": asked.task,
                "prompt": asked.caption or None,
                "cut_text_tokens": asked.cut,
                "notes": asked.notes,
                **artifacts.facts(memory=asked.reads_memory, encoder=rank == "clip"),
                "k": self.settings.k,
                "contexts": [context.facts() for context in asked.contexts],
                "given": [one.facts() for one in asked.given],
                "box": list(asked.box.edges) if asked.box else None,
                "box_seen": list(asked.canvas_box.edges) if asked.canvas_box else None,
                "seed": self.settings.seed,
                "sampler": sampler,
                "candidates": candidates,
                "log_likelihood": chosen.best.logprob,
                "output_tokens": list(document.image if image else document.text),
            },
        )
