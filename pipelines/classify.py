"""Classifies an image by demonstrations: which of some free labels the generator would write.

Images are given as files or as documents of the store. What made the answer is told with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.decode.child import Decoder
from pipelines.decode.normalize import NormalizeOptions
from pipelines.errors import UsageError
from pipelines.models import (
    Files,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
)
from pipelines.records import documents_of, image_stack
from pipelines.runtime.catalog import find_manifest, read_ref
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.manifest import Manifest

__all__ = [
    "Classified",
    "Picture",
    "classify_image",
    "classify_picture",
    "load_pictures",
    "read_classes",
]

_SHORTEST_ID = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image as it was given, and what was made of it."""

    name: str
    """Path or id, as given."""
    png: bytes
    """Normalised as the documents of the run are."""
    document_id: str | None = None
    """Where it is a document."""
    sha256: str | None = None
    """Of the file, where it is one."""

    def facts(self) -> dict[str, Any]:
        """Everything but the pixels."""
        return {name: value for name, value in asdict(self).items() if name != "png" and value}


@dataclass(frozen=True, kw_only=True, slots=True)
class Classified:
    """The answer and what made it."""

    probabilities: Mapping[str, float]
    """By label, in the order given; they add up to 1."""
    sets: tuple[Mapping[str, float], ...]
    """What each set of demonstrations says by itself."""
    made_by: Mapping[str, Any]
    """Artifacts, images and settings."""

    @property
    def label(self) -> str:
        """The likeliest; the first of equals."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "sets": [dict(one) for one in self.sets],
            **self.made_by,
        }


def read_classes(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`LABEL=image,image` as label -> images.

    Raises:
        UsageError: when one is not of that form, a label is there twice, there are fewer than two,
            or they do not have equally many images.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        label, equals, rest = text.partition("=")
        images = tuple(name.strip() for name in rest.split(",") if name.strip())
        if not (equals and label.strip() and images):
            raise UsageError(f"--class {text}: write it as LABEL=image.png,image.png")
        if label.strip() in found:
            raise UsageError(f"--class {text}: the label is there twice; give each class its own")
        found[label.strip()] = images
    if len(found) < 2:
        raise UsageError("classify: give two classes or more, each as --class LABEL=image.png")
    if len({len(images) for images in found.values()}) > 1:
        counts = ", ".join(f"{label} {len(images)}" for label, images in found.items())
        raise UsageError(f"classify: give equally many images of each class, not {counts}")
    return found


def classify_image(
    store: Store,
    namespace: str,
    image: str,
    classes: Mapping[str, Sequence[str]],
    *,
    model: str,
    all_orders: bool = True,
    all_labels: bool = False,
    calibrate: bool = False,
) -> Classified:
    """`classify_picture` of images by path or by document id (`load_pictures`)."""
    named = [(label, name) for label, names in classes.items() for name in names]
    asked, *shown = load_pictures(store, namespace, [image, *(name for _, name in named)])
    pictures: dict[str, list[Picture]] = {label: [] for label in classes}
    for (label, _), picture in zip(named, shown, strict=True):
        pictures[label].append(picture)
    return classify_picture(
        store,
        namespace,
        asked,
        pictures,
        model=model,
        all_orders=all_orders,
        all_labels=all_labels,
        calibrate=calibrate,
    )


def load_pictures(store: Store, namespace: str, names: Sequence[str]) -> list[Picture]:
    """Images by path or by document id (its first digits), normalised as the run's documents.

    Raises:
        UsageError: when one is neither a usable image file nor one document of the run.
    """
    reader, found = Reader(store), []
    options = NormalizeOptions(**_ref(store, namespace, "normalized_images").config)
    documents = _Documents(reader, _ref(store, namespace, "documents"))
    with Decoder(options) as decoder:
        for name in names:
            if not Path(name).is_file():
                found.append(documents.find(name))
                continue
            data = Path(name).read_bytes()
            (decoded,) = decoder.decode([data])
            if decoded.image is None:
                raise UsageError(f"classify: {name} is no usable image ({decoded.outcome.value})")
            found.append(Picture(name=name, png=decoded.image.png, sha256=sha256_bytes(data)))
    return found


def classify_picture(
    store: Store,
    namespace: str,
    image: Picture,
    classes: Mapping[str, Sequence[Picture]],
    *,
    model: str,
    all_orders: bool = True,
    all_labels: bool = False,
    calibrate: bool = False,
) -> Classified:
    """Asks a generator, with the tokenizers that it was trained with, of which class an image is.

    Args:
        store: of the artifacts.
        namespace: of the references: the recipe's name.
        image: that is asked about.
        classes: demonstrations by label, equally many each; the n-th of each class are one set.
        model: name of the generator.
        all_orders: average over the orders of a set's demonstrations.
        all_labels: average over which label stands for which class.
        calibrate: divide by what the labels have without the image.

    Raises:
        UsageError: when the generator was never made, or a label does not suit it.
    """
    from racm3.sampling.classify import ClassifyConfig, Question, classify, ensemble

    pin_threads()
    reader, checkpoint = Reader(store), _ref(store, namespace, f"generator.{model}")
    loaded = load_generator(_files(reader, checkpoint))
    used = {kind: _input(store, checkpoint, kind) for kind in ("text_tokenizer", "image_tokenizer")}
    text = load_text_tokenizer(_files(reader, used["text_tokenizer"]))
    shown = [one for pictures in classes.values() for one in pictures]
    codes = _codes([image, *shown], _files(reader, used["image_tokenizer"]))
    by_class = np.array(codes[1:]).reshape(len(classes), -1, len(codes[0]))
    question = Question(
        image=codes[0],
        demonstrations=tuple(
            tuple(tuple(one) for one in of_set) for of_set in by_class.transpose(1, 0, 2).tolist()
        ),
    )
    labels = [tuple(text.encode(label)) for label in classes]
    how = ClassifyConfig(all_orders=all_orders, all_labels=all_labels, calibrate=calibrate)
    try:
        (told,) = classify(loaded.model, loaded.layout, [question], labels, how)
    except ValueError as error:
        raise UsageError(f"classify: {error}") from error
    return Classified(
        probabilities=_by_label(classes, ensemble(told, len(told)).tolist()),
        sets=tuple(_by_label(classes, one) for one in told.tolist()),
        made_by={
            "image": image.facts(),
            "demonstrations": {
                label: [one.facts() for one in pictures] for label, pictures in classes.items()
            },
            "model": model,
            "generator": checkpoint.artifact_id,
            **{kind: manifest.artifact_id for kind, manifest in used.items()},
            "all_orders": all_orders,
            "all_labels": all_labels,
            "calibrate": calibrate,
        },
    )


class _Documents:
    """The kept documents of a run, read when one is asked for."""

    def __init__(self, reader: Reader, manifest: Manifest) -> None:
        self._reader, self._manifest = reader, manifest
        self._images: dict[str, bytes] | None = None

    def find(self, name: str) -> Picture:
        """The one document whose id starts so."""
        if self._images is None:
            shards = self._manifest.tables("documents")
            table = documents_of(self._reader, shards, ["document_id", "image"])
            self._images = dict(zip(*(table.column(i).to_pylist() for i in (0, 1)), strict=True))
        ids = [one for one in self._images if one.startswith(name)]
        if len(name) < _SHORTEST_ID or len(ids) != 1:
            raise UsageError(
                f"classify: {name} is neither a file nor one document; give a path, or at least "
                f"{_SHORTEST_ID} digits of a document's id"
            )
        return Picture(name=name, png=self._images[ids[0]], document_id=ids[0])


def _codes(pictures: Sequence[Picture], tokenizer: Files) -> list[tuple[int, ...]]:
    import torch

    from racm3.training.image_tokenizer import images_to_tensor

    model = load_image_tokenizer(tokenizer)
    images = image_stack([picture.png for picture in pictures], model.image_size)
    with torch.no_grad():
        return [tuple(one) for one in model.encode(images_to_tensor(images)).tolist()]


def _by_label(labels: Mapping[str, Any], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(labels, values, strict=True))


def _ref(store: Store, namespace: str, name: str) -> Manifest:
    found = read_ref(store, namespace, name)
    if found is None:
        raise UsageError(f"classify: {namespace} has no {name}; run the recipe first")
    return found


def _input(store: Store, manifest: Manifest, kind: str) -> Manifest:
    """The artifact of some kind that another one was made of."""
    (ref,) = (one for one in manifest.inputs if one.kind == kind)
    found = find_manifest(store, kind, ref.artifact_id)
    if found is None:
        raise UsageError(f"classify: {kind} {ref.artifact_id} of the generator is gone; retrain it")
    return found


def _files(reader: Reader, manifest: Manifest) -> Files:
    return {shard.name: reader.file(shard) for shard in manifest.shards if not shard.is_table}
