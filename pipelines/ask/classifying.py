"""Of which class a picture is, by demonstrations.

`channel`: under which class's demonstration and label is the picture the likelier? `direct`: which
label would the generator write under it? (RA-CM3 asks so.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.ask.answer import record_of, write_record
from pipelines.ask.artifacts import Artifacts
from pipelines.ask.given import Given
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from racm3.sampling.classify import Question

__all__ = ["Classified", "Method", "classify_given", "read_classes"]

Method = Literal["channel", "direct"]


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
    artifacts: Artifacts,
    image: Given,
    classes: Mapping[str, Sequence[Given]],
    *,
    method: Method = "channel",
    **how: bool,
) -> Classified:
    """Asks a generator of which class a picture is; the memory is not read.

    Args:
        artifacts: that the generator is among.
        image: that is asked about.
        classes: demonstrations by label, equally many each; the n-th of each class are one set.
        method: which way it is asked.
        how: switches of `racm3.sampling.classify.ClassifyConfig`; with `channel` only `all_labels`
            has a meaning.

    Raises:
        UsageError: when a label does not suit the generator, or a switch the method.
    """
    from racm3.sampling.classify import Question

    if method == "channel" and (how.get("calibrate") or not how.get("all_orders", True)):
        raise UsageError(
            "classify: --calibrate and --no-all-orders have a meaning only with --method direct; "
            "add that, or leave them out"
        )
    sets = zip(*classes.values(), strict=True)
    shown = tuple(tuple(one.codes for one in of_set) for of_set in sets)
    question = Question(image=image.codes, demonstrations=shown)
    labels = [tuple(artifacts.text.encode(label)) for label in classes]
    try:
        told, settings = _told(artifacts, question, labels, method, how)
    except ValueError as error:
        raise UsageError(f"classify: {error}") from error
    by_label = [dict(zip(classes, one.tolist(), strict=True)) for one in told]
    demonstrations = {label: [one.facts() for one in these] for label, these in classes.items()}
    return Classified(
        probabilities=by_label[0],
        sets=tuple(by_label[1:]),
        facts={
            "task": "classify",
            **artifacts.facts(),
            "given": [image.facts()],
            "demonstrations": demonstrations,
            "settings": {"method": method} | settings,
        },
    )


def _told(
    artifacts: Artifacts,
    question: Question,
    labels: Sequence[tuple[int, ...]],
    method: Method,
    how: Mapping[str, bool],
) -> tuple[list[NDArray[np.float64]], dict[str, Any]]:
    """Probabilities by all sets together, then by each; and the settings."""
    from racm3.sampling.channel import image_log_likelihoods, shares
    from racm3.sampling.classify import ClassifyConfig, classify, ensemble

    loaded = artifacts.loaded
    if method == "channel":
        all_labels = how.get("all_labels", True)
        (likely,) = image_log_likelihoods(
            loaded.model, loaded.layout, [question], labels, all_labels=all_labels
        )
        found = shares(likely)
        return [ensemble(found, len(found)), *found], {"all_labels": all_labels}
    config = ClassifyConfig(**how)
    (found,) = classify(loaded.model, loaded.layout, [question], labels, config)
    return [ensemble(found, len(found)), *found], asdict(config)
