"""Of which class a picture is, by demonstrations: which label would the generator write?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.ask.answer import record_of, write_record
from pipelines.ask.artifacts import Artifacts
from pipelines.ask.given import Given
from pipelines.errors import UsageError

__all__ = ["Classified", "classify_given", "read_classes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classified:
    """What a generator says of a picture's class."""

    probabilities: Mapping[str, float]
    """By label, in the order given; they add up to 1."""
    sets: tuple[Mapping[str, float], ...]
    """What each set of demonstrations says by itself."""
    facts: Mapping[str, Any]
    """Plain JSON: task, pictures given, settings, artifacts."""

    @property
    def label(self) -> str:
        """The likeliest; the first of equals."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])

    def save(self, output: Path) -> dict[str, Any]:
        """Writes the answer and its origin as one JSON file; returns what it wrote."""
        told = {
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "sets": [dict(one) for one in self.sets],
        }
        record = record_of(output, told | dict(self.facts), media_type="application/json")
        write_record(record, output)
        return record


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


def classify_given(
    artifacts: Artifacts, image: Given, classes: Mapping[str, Sequence[Given]], **how: bool
) -> Classified:
    """Asks a generator of which class a picture is; the memory is not read.

    Args:
        artifacts: that the generator is among.
        image: that is asked about.
        classes: demonstrations by label, equally many each; the n-th of each class are one set.
        how: switches of `racm3.sampling.classify.ClassifyConfig`.

    Raises:
        UsageError: when a label does not suit the generator.
    """
    from racm3.sampling.classify import ClassifyConfig, Question, classify, ensemble

    sets = zip(*classes.values(), strict=True)
    shown = tuple(tuple(one.codes for one in of_set) for of_set in sets)
    question = Question(image=image.codes, demonstrations=shown)
    labels = [tuple(artifacts.text.encode(label)) for label in classes]
    loaded, config = artifacts.loaded, ClassifyConfig(**how)
    try:
        (told,) = classify(loaded.model, loaded.layout, [question], labels, config)
    except ValueError as error:
        raise UsageError(f"classify: {error}") from error
    by_label = [
        dict(zip(classes, one.tolist(), strict=True)) for one in (ensemble(told, len(told)), *told)
    ]
    demonstrations = {label: [one.facts() for one in these] for label, these in classes.items()}
    return Classified(
        probabilities=by_label[0],
        sets=tuple(by_label[1:]),
        facts={
            "task": "classify",
            **artifacts.facts(),
            "given": [image.facts()],
            "demonstrations": demonstrations,
            "settings": asdict(config),
        },
    )
