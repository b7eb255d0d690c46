"""Which spans of a sample are masked.

A mix of five samplers. `uniform_spans` is CM3's own (Aghajanyan et al. 2022, section 2): a Poisson
number of spans with both ends uniform. Alone it almost never masks a whole caption between images
(under 0.1 % of samples at 1024 codes an image), so captioning would be untrained: hence the whole
segments and the spans inside an image. Differences from the public code: an empty candidate covers
one token instead of overwriting it; no span covers `</s>`, so none crosses samples; room for the
sentinels is reserved before a row is filled, so no `<eoss>` is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from racm3.sequence.layout import Segment, Sequence

SAMPLERS = ("none", "uniform_spans", "whole_caption", "whole_image", "image_span")


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """Half-open [start, stop) of a sequence before masking; never empty.

    Raises:
        ValueError: when it is empty or starts below 0.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a span needs 0 <= start < stop, not [{self.start}, {self.stop})")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanMixConfig:
    """How often each sampler is used, and the switches of `uniform_spans`.

    The five weights need not sum to 1.

    Raises:
        ValueError: when a weight is negative or not finite, all are 0, or a switch is out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    none: float = 0.3
    """Weight of leaving the sample as it is: plain causal."""

    uniform_spans: float = 0.2
    """Weight of CM3's own sampler."""

    whole_caption: float = 0.25
    """Weight of masking the main document's caption: learns to caption."""

    whole_image: float = 0.1
    """Weight of masking the main document's image."""

    image_span: float = 0.15
    """Weight of one uniform span inside the main document's image: learns to infill."""

    poisson_rate: float = 1.0
    """Mean number of spans of `uniform_spans` before clamping."""

    min_masks: int = 0
    """Least number of spans asked for: 0 in RA-CM3's code base, 1 in the CM3 paper. Overlapping
    candidates are rejected, so fewer may come out."""

    max_masks: int = 16
    """Most spans of a sample (CM3's clamp)."""

    break_limited: bool = True
    """True (CM3Leon): a span is cut to the one segment that it overlaps most. False (RA-CM3): it
    may cross `<break>`."""

    mask_contexts: bool = True
    """True (code base): `uniform_spans` ranges over contexts and main document. False: the main
    document only."""

    def __post_init__(self) -> None:
        for name in SAMPLERS:
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"SpanMixConfig.{name} must be finite and >= 0, not {weight}")
        if not any(getattr(self, name) for name in SAMPLERS):
            raise ValueError("SpanMixConfig needs one sampler with a weight above 0")
        if not 0 <= self.min_masks <= self.max_masks or self.max_masks < 1:
            raise ValueError(
                "SpanMixConfig needs 0 <= min_masks <= max_masks and max_masks >= 1, not "
                f"{self.min_masks} and {self.max_masks}"
            )
        if not (math.isfinite(self.poisson_rate) and self.poisson_rate >= 0):
            raise ValueError(
                f"SpanMixConfig.poisson_rate must be finite and >= 0, not {self.poisson_rate}"
            )

    @property
    def probabilities(self) -> dict[str, float]:
        """The five weights, normalised."""
        weights = {name: float(getattr(self, name)) for name in SAMPLERS}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    @property
    def most_spans(self) -> int:
        """Most spans any sample can get: what a row reserves 3 tokens each for."""
        if self.uniform_spans:
            return self.max_masks
        return int(any((self.whole_caption, self.whole_image, self.image_span)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanDraw:
    """What was drawn: the sampler's name, and its spans in order, disjoint."""

    sampler: str
    spans: tuple[Span, ...]


def draw_sampler(config: SpanMixConfig, generator: np.random.Generator) -> str:
    """Draws one of `SAMPLERS` by its weight."""
    point, name = generator.random(), SAMPLERS[0]
    for candidate, probability in config.probabilities.items():
        if probability:
            name = candidate
        point -= probability
        if point < 0:
            break
    return name


def draw_spans(
    sequence: Sequence,
    config: SpanMixConfig,
    generator: np.random.Generator,
    *,
    sampler: str | None = None,
) -> SpanDraw:
    """Draws a sampler, unless one is given, then its spans.

    An empty caption cannot be masked: no span then.
    """
    name = draw_sampler(config, generator) if sampler is None else sampler
    return SpanDraw(sampler=name, spans=_SAMPLERS[name](sequence, config, generator))


def _none(
    sequence: Sequence, config: SpanMixConfig, generator: np.random.Generator
) -> tuple[Span, ...]:
    del sequence, config, generator
    return ()


def _whole_caption(
    sequence: Sequence, config: SpanMixConfig, generator: np.random.Generator
) -> tuple[Span, ...]:
    del config, generator
    return _whole(sequence.main_segments[0])


def _whole_image(
    sequence: Sequence, config: SpanMixConfig, generator: np.random.Generator
) -> tuple[Span, ...]:
    del config, generator
    return _whole(sequence.main_segments[1])


def _image_span(
    sequence: Sequence, config: SpanMixConfig, generator: np.random.Generator
) -> tuple[Span, ...]:
    del config
    image = sequence.main_segments[1]
    return tuple(_uniform_candidates(image.start, image.stop, 1, generator))


def _uniform_spans(
    sequence: Sequence, config: SpanMixConfig, generator: np.random.Generator
) -> tuple[Span, ...]:
    """Poisson number n, then n*n candidates; each is kept if disjoint from those kept, up to n."""
    drawn = int(generator.poisson(config.poisson_rate))
    count = min(max(drawn, config.min_masks), config.max_masks)
    first = 1 if config.mask_contexts else sequence.main_segments[0].start
    kept: list[Span] = []
    for candidate in _uniform_candidates(first, len(sequence.ids) - 1, count**2, generator):
        span = _limit(candidate, sequence.segments) if config.break_limited else candidate
        if span and all(span.stop <= old.start or old.stop <= span.start for old in kept):
            kept.append(span)
        if len(kept) == count:
            break
    return tuple(sorted(kept))


_SAMPLERS: dict[str, Callable[[Sequence, SpanMixConfig, np.random.Generator], tuple[Span, ...]]] = {
    "none": _none,
    "uniform_spans": _uniform_spans,
    "whole_caption": _whole_caption,
    "whole_image": _whole_image,
    "image_span": _image_span,
}


def _whole(segment: Segment) -> tuple[Span, ...]:
    return (Span(segment.start, segment.stop),) if segment.stop > segment.start else ()


def _uniform_candidates(
    first: int, stop: int, count: int, generator: np.random.Generator
) -> list[Span]:
    """Spans in [first, stop) with both ends uniform, rounded as in the code base."""
    length = stop - first
    ends = np.sort(generator.random((count, 2)), axis=1) * length
    starts = np.minimum(ends[:, 0].astype(np.int64), length - 1)
    stops = np.maximum((ends[:, 1] + 0.5).astype(np.int64), starts + 1)
    return [
        Span(first + start, first + end)
        for start, end in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def _limit(span: Span, segments: tuple[Segment, ...]) -> Span | None:
    """The part of a span in the segment that it overlaps most; None if it covers a separator."""
    overlaps = [(max(span.start, s.start), min(span.stop, s.stop)) for s in segments]
    start, stop = max(overlaps, key=lambda overlap: overlap[1] - overlap[0])
    return Span(start, stop) if stop > start else None
