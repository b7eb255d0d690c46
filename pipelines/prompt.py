"""A free prompt: retrieve with it, draw, say from what."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.errors import UsageError
from pipelines.models import (
    load_encoder,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
)
from pipelines.records import (
    INDEX,
    documents_of,
    image_png,
    memory_of,
    modality_of,
    order_of,
    rows_of,
)
from pipelines.runtime.catalog import read_ref
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from racm3.document import DocumentTokens
from racm3.sampling.decode import SamplingConfig
from racm3.sequence.order import context_order
from storage_schemas.manifest import Manifest

__all__ = ["Drawn", "FedContext", "draw_image", "only_namespace"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FedContext:
    """A document that was put in front."""

    document_id: str
    score: float
    source: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """An image and what made it."""

    png: bytes
    generator: str
    memory: str | None
    contexts: tuple[FedContext, ...]
    """In the order fed."""

    def facts(self) -> dict[str, Any]:
        """Everything but the image."""
        contexts = [asdict(context) for context in self.contexts]
        return {"generator": self.generator, "memory": self.memory, "contexts": contexts}


def only_namespace(store: Store) -> str:
    """The one recipe that has references in a store.

    Raises:
        UsageError: when there is none, or more than one.
    """
    names = sorted({key.split("/")[1] for key in store.list("_refs")})
    if len(names) == 1:
        return names[0]
    if names:
        raise UsageError(f"generate: the store holds {', '.join(names)}; choose with --recipe")
    raise UsageError("generate: the store holds no models yet; start with: racm3 run smoke")


def draw_image(
    store: Store,
    namespace: str,
    prompt: str,
    *,
    model: str,
    memory: str | None = None,
    k: int = 2,
    temperature: float = 1.0,
    guidance: float = 2.0,
    seed: int = 0,
) -> Drawn:
    """Draws an image from a caption with what the references of a recipe point at.

    Args:
        store: of the artifacts.
        namespace: of the references: the recipe's name.
        prompt: caption.
        model: name of the generator.
        memory: name of the memory; None: the one that holds most.
        k: contexts at most; a generator that was trained without any gets none.
        temperature: of the sampler; it keeps 0.9 of the mass.
        guidance: by a null prompt that lacks caption and contexts; 1: off.
        seed: of the sample.

    Raises:
        UsageError: when the prompt is empty or something was never made.
    """
    if not prompt.strip():
        raise UsageError("generate: the prompt is empty; write the caption of an image")
    pin_threads()
    how = SamplingConfig(temperature=temperature, top_p=0.9, guidance=guidance, null_lacks="both")
    asked = _Asked(store, namespace)
    checkpoint = asked.ref(f"generator.{model}")
    k = min(k, int(checkpoint.config["stream"]["max_k"]))
    name, contexts, tokens = asked.retrieve(prompt, memory, k) if k else (None, (), ())
    ranks = context_order(len(contexts), order_of(checkpoint), np.random.default_rng(seed))
    return Drawn(
        png=asked.draw(checkpoint, prompt, tuple(tokens[i] for i in ranks), how, seed=seed),
        generator=checkpoint.artifact_id,
        memory=name,
        contexts=tuple(contexts[i] for i in ranks),
    )


class _Asked:
    """The artifacts of one namespace."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.store, self.namespace, self.reader = store, namespace, Reader(store)
        self.text = load_text_tokenizer(self._files(self.ref("text_tokenizer")))

    def ref(self, name: str) -> Manifest:
        """What a reference points at.

        Raises:
            UsageError: when it points at nothing.
        """
        found = read_ref(self.store, self.namespace, name)
        if found is None:
            known = sorted(
                {key.split("/")[2] for key in self.store.list(f"_refs/{self.namespace}")}
            )
            raise UsageError(
                f"generate: {self.namespace} has no {name}; "
                + (f"it has {', '.join(known)}" if known else "run the recipe first")
            )
        return found

    def retrieve(
        self, prompt: str, memory: str | None, k: int
    ) -> tuple[str, tuple[FedContext, ...], tuple[DocumentTokens, ...]]:
        """Name of the memory; the contexts of a prompt, as people and as the generator see them."""
        from racm3.retriever.index import FaissIndex
        from racm3.retriever.retriever import Retriever
        from racm3.retriever.selection import SelectionConfig

        name = memory or self._largest_memory()
        held = self.ref(f"memory.{name}")
        files = self._files(held)
        rules = self.ref("contexts.train").config["selection"]
        retriever = Retriever(
            memory_of(self.reader.tables(held.tables("memory")), files),
            FaissIndex.load(files[INDEX]),
            replace(SelectionConfig(**rules), max_contexts=k),
        )
        vectors = self._encoder().encode_text([prompt])
        hits = retriever.retrieve(vectors).selections[0].contexts
        rows = self._documents([hit.document_id for hit in hits])
        fed = tuple(
            FedContext(
                document_id=hit.document_id,
                score=hit.score,
                source=rows[hit.document_id]["source"],
                caption=rows[hit.document_id]["caption"],
            )
            for hit in hits
        )
        shown = modality_of(self.ref("examples.train"))
        tokens = (self._tokens(rows[hit.document_id]).showing(shown) for hit in hits)
        return name, fed, tuple(tokens)

    def draw(
        self,
        checkpoint: Manifest,
        prompt: str,
        contexts: tuple[DocumentTokens, ...],
        how: SamplingConfig,
        *,
        seed: int,
    ) -> bytes:
        """The image as PNG."""
        import torch

        from racm3.sampling.tasks import Prompt, sample_images
        from racm3.training.image_tokenizer import tensor_to_images

        loaded = load_generator(self._files(checkpoint))
        text = tuple(self.text.encode(prompt)[: loaded.layout.max_text_tokens])
        cut = tuple(
            replace(one, text=one.text[: loaded.layout.max_text_tokens]) for one in contexts
        )
        sample = sample_images(
            loaded.model,
            loaded.layout,
            [Prompt(contexts=cut, text=text)],
            how,
            seeds=[seed],
        )[0]
        images = load_image_tokenizer(self._files(self.ref("image_tokenizer")))
        with torch.no_grad():
            pixels = images.decode(torch.tensor([list(sample.document.image)]))
        return image_png(tensor_to_images(pixels)[0])

    def _files(self, manifest: Manifest) -> Any:
        return {s.name: self.reader.file(s) for s in manifest.shards if not s.is_table}

    def _largest_memory(self) -> str:
        prefix = f"_refs/{self.namespace}"
        names = {key.split("/")[2] for key in self.store.list(prefix)}
        found = sorted(name for name in names if name.startswith("memory."))
        if not found:
            self.ref("memory.restricted")
        return max(found, key=lambda name: self.ref(name).rows_out).removeprefix("memory.")

    def _encoder(self) -> Any:
        from racm3.encoder.clip import ClipSpec, load_clip

        spec = self.ref("embeddings").config["pretrained"]
        if spec is not None:
            from pipelines.models import device

            return load_clip(ClipSpec(**spec), device=device())
        return load_encoder(self._files(self.ref("encoder")))

    def _documents(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Caption, source and codes of some documents."""
        columns = ["document_id", "caption", "source"]
        table = documents_of(self.reader, self.ref("documents").tables("documents"), columns)
        rows = {row["document_id"]: row for row in rows_of(table, names).to_pylist()}
        for shard in self.ref("image_tokens").tables("image_tokens"):
            codes = self.reader.table(shard, ["document_id", "codes"])
            for row in rows_of(codes, names).to_pylist():
                rows[row["document_id"]]["codes"] = row["codes"]
        return rows

    def _tokens(self, row: dict[str, Any]) -> DocumentTokens:
        text = tuple(self.text.encode(row["caption"]))
        return DocumentTokens(text=text, image=tuple(row["codes"]))
