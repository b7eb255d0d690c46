"""The artifacts of one recipe that a generator is asked with, checked to fit together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import FoundWrong, UsageError
from pipelines.made_with import check_together, made_with
from pipelines.models import (
    LoadedGenerator,
    device,
    load_encoder,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
)
from pipelines.records import modality_of
from pipelines.runtime.catalog import find_manifest, read_ref, resolve
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest

if TYPE_CHECKING:
    from racm3.document import ContextModality
    from racm3.encoder.base import MultimodalEncoder
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.text_tokenizer import TextTokenizer

__all__ = ["Artifacts", "only_namespace"]


def only_namespace(store: Store) -> str:
    """The one recipe that has references in a store.

    Raises:
        UsageError: when there is none, or more than one.
    """
    names = sorted({key.split("/")[1] for key in store.list("_refs")})
    if len(names) == 1:
        return names[0]
    if names:
        raise UsageError(f"the store holds {', '.join(names)}; choose with --recipe")
    raise UsageError("the store holds no models yet; start with: racm3 run smoke")


class Artifacts:
    """What the references of a recipe point at; models are loaded when they are first needed.

    A generator is asked with its own tokenizers, a memory with its own encoder: those named by
    their manifests, whatever the references point at by now.
    """

    def __init__(self, store: Store, namespace: str, *, model: str, memory: str | None) -> None:
        """Finds the generator; what else is found when it is needed fits to it, or is refused.

        Args:
            store: of the artifacts.
            namespace: of the references: the recipe's name.
            model: name of the generator in the recipe, or the start of an artifact id.
            memory: likewise; None: the one that holds most.

        Raises:
            UsageError: when the generator was never made.
        """
        self.store, self.namespace, self.reader = store, namespace, Reader(store)
        self.model, self._memory = model, memory
        self.generator = self._chosen("generator", model)
        self.max_contexts = int(self.generator.config["stream"]["max_k"])

    # --- manifests ------------------------------------------------------------------------

    def ref(self, name: str) -> Manifest:
        """What a reference points at.

        Raises:
            UsageError: when it points at nothing.
        """
        found = read_ref(self.store, self.namespace, name)
        if found is None:
            known = self._names()
            raise UsageError(
                f"{self.namespace} has no {name}; "
                + (f"it has {', '.join(known)}" if known else "run the recipe first")
            )
        return found

    def _names(self) -> list[str]:
        keys = self.store.list(f"_refs/{self.namespace}")
        return sorted({key.split("/")[2] for key in keys})

    def _chosen(self, kind: str, name: str) -> Manifest:
        found = read_ref(self.store, self.namespace, f"{kind}.{name}")
        if found is None and len(name) >= 6 and set(name) <= set("0123456789abcdef"):
            return resolve(self.store, f"{kind}/{name}")
        return found or self.ref(f"{kind}.{name}")

    def _largest_memory(self) -> str:
        found = [name for name in self._names() if name.startswith("memory.")]
        if not found:
            self.ref("memory.restricted")
        return max(found, key=lambda name: self.ref(name).rows_out).removeprefix("memory.")

    @cached_property
    def memory_name(self) -> str | None:
        """Name of the memory; None: the generator reads no contexts."""
        return (self._memory or self._largest_memory()) if self.max_contexts else None

    @cached_property
    def memory(self) -> Manifest | None:
        """None: the generator reads no contexts.

        Raises:
            UsageError: when it was never made, or made with another encoder than the generator.
        """
        if self.memory_name is None:
            return None
        found = self._chosen("memory", self.memory_name)
        check_together(self.store, self.generator, found, "encoder")
        return found

    @cached_property
    def image_tokens(self) -> Manifest:
        """Codes of the recipe's documents.

        Raises:
            UsageError: when they were made with another image tokenizer than the generator.
        """
        found = self.ref("image_tokens")
        check_together(self.store, self.generator, found, "image_tokenizer")
        return found

    @cached_property
    def text_tokenizer(self) -> Manifest:
        """The generator's."""
        return self._own("text_tokenizer")

    @cached_property
    def image_tokenizer(self) -> Manifest:
        """The generator's."""
        return self._own("image_tokenizer")

    def _own(self, name: str) -> Manifest:
        (ref,) = [one for one in self.generator.inputs if one.name == name]
        found = find_manifest(self.store, ref.kind, ref.artifact_id)
        if found is None:
            raise FoundWrong(
                f"generator {self.generator.artifact_id}: its {ref.kind} {ref.artifact_id} is "
                "gone from the store; restore it"
            )
        return found

    @cached_property
    def context_modality(self) -> ContextModality:
        """What the contexts showed that the generator was trained with."""
        return modality_of(self._own("train"))

    @cached_property
    def embeddings(self) -> Manifest:
        """Those that the memory holds; without a memory those of the recipe."""
        refs = (
            [one for one in self.memory.inputs if one.kind == "embeddings"] if self.memory else []
        )
        found = find_manifest(self.store, "embeddings", refs[0].artifact_id) if refs else None
        return found or self.ref("embeddings")

    @cached_property
    def encoder_name(self) -> str:
        """Artifact id of the retriever's encoder; of a public one, its name and weights."""
        found = made_with(self.store, self.embeddings, "encoder")
        if found is None:
            raise FoundWrong(f"embeddings {self.embeddings.artifact_id}: name no encoder")
        return found.name

    def facts(self, *, memory: bool = False, encoder: bool = False) -> dict[str, Any]:
        """What is recorded of all that took part in an answer.

        Args:
            memory: whether it was read, if there is one.
            encoder: whether it was used although no memory was read.
        """
        held = self.memory if memory else None
        return {
            "model": self.model,
            "generator": self.generator.artifact_id,
            "memory": self.memory_name if held else None,
            "recipe": self.namespace,
            "artifacts": {
                "generator": self.generator.artifact_id,
                "text_tokenizer": self.text_tokenizer.artifact_id,
                "image_tokenizer": self.image_tokenizer.artifact_id,
                "encoder": self.encoder_name if held or encoder else None,
                "memory": held.artifact_id if held else None,
            },
        }

    # --- models ---------------------------------------------------------------------------

    def files(self, manifest: Manifest) -> Mapping[str, Path]:
        """Files of an artifact by name, each checked."""
        return {s.name: self.reader.file(s) for s in manifest.shards if not s.is_table}

    @cached_property
    def text(self) -> TextTokenizer:
        """Words to tokens and back."""
        return load_text_tokenizer(self.files(self.text_tokenizer))

    @cached_property
    def images(self) -> ImageTokenizer:
        """Pixels to codes and back."""
        return load_image_tokenizer(self.files(self.image_tokenizer))

    @cached_property
    def encoder(self) -> MultimodalEncoder:
        """The retriever's."""
        from racm3.encoder.clip import ClipSpec, load_clip

        public: Any = self.embeddings.config["pretrained"]
        if public is not None:
            return load_clip(ClipSpec(**public), device=device())
        manifest = find_manifest(self.store, "encoder", self.encoder_name)
        if manifest is None:
            raise FoundWrong(f"encoder {self.encoder_name}: is gone from the store; restore it")
        return load_encoder(self.files(manifest))

    @cached_property
    def loaded(self) -> LoadedGenerator:
        """The generator and its layout.

        Raises:
            UsageError: when its vocabulary is not that of its tokenizers.
        """
        found = load_generator(self.files(self.generator))
        vocabulary = found.layout.vocabulary
        for size, there, tokenizer in (
            (vocabulary.text_size, self.text.vocab_size, self.text_tokenizer),
            (vocabulary.image_size, self.images.codebook_size, self.image_tokenizer),
        ):
            if size != there:
                raise UsageError(
                    f"generator {self.generator.artifact_id} has a vocabulary of {size} where "
                    f"{tokenizer.kind} {tokenizer.artifact_id} has {there}: they are of two runs"
                )
        return found
