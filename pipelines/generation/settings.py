"""What a run says of its generations: tasks, samplers, candidates."""

from __future__ import annotations

from pydantic import Field

from pipelines.generation.asking import Task
from pipelines.generation.ranking import Rank
from pipelines.runtime.stage import StageConfig
from racm3.encoder.clip import ClipSpec
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.holes import BoxRule
from racm3.sampling.tasks import Filling
from racm3.sequence.order import ContextOrder

__all__ = ["Candidates", "Config"]


class Candidates(StageConfig):
    """Of one task: how many samples of each prompt are drawn, and which one is kept."""

    count: int = Field(1, ge=1, description="samples drawn; 1: none is chosen")
    rank: Rank | None = Field(
        None, description="what the best is best by; none: clip for images, likelihood for captions"
    )


class Config(StageConfig):
    """Which model is asked, with which contexts, how it draws."""

    model: str = Field("", description="name of the generator; a run fills it in")
    memory: str | None = Field(None, description="name of the memory; a run fills it in")
    k: int = Field(2, description="contexts put in front")
    context_order: ContextOrder | None = Field(
        None, description="of the contexts; none: as in training, best first where it shuffles"
    )
    tasks: tuple[Task, ...] = ("image", "caption")
    images: SamplingConfig = Field(default_factory=SamplingConfig)
    captions: SamplingConfig = Field(default_factory=SamplingConfig)
    edits: SamplingConfig | None = Field(
        None,
        description="of edits, which guidance by contexts lets follow what is supplied; none: "
        "as images",
    )
    images_per_prompt: int = Field(
        1, ge=1, description="images drawn of each caption; token accuracy is their mean"
    )
    candidates: dict[Task, Candidates] = Field(
        default_factory=dict, description="by task; the best of several is kept"
    )
    pretrained: ClipSpec | None = Field(
        None, description="public CLIP of the retriever, where clip ranks; a run fills it in"
    )
    infill_box: BoxRule = Field("lower_half", description="pixels that an infill draws anew")
    edit_box: BoxRule = Field("centre", description="pixels that an edit draws anew")
    filling: Filling = Field("bridged", description="a box as one span, or as one a row of codes")
    prompts_per_group: int | None = Field(
        None, description="of each set and group at most so many prompts, chosen by digest"
    )
    prompts_per_shard: int = Field(64, description="unit of work and of reuse")
    seed: int = 0

    def samples(self, task: Task) -> int:
        """Samples of each prompt that are kept."""
        return self.images_per_prompt if task == "image" else 1

    def sampler(self, task: Task) -> SamplingConfig:
        """How a task is drawn."""
        if task == "caption":
            return self.captions
        edits = self.edits if task == "edit" else None
        return edits or self.images

    def ranked_by(self, task: Task) -> Rank | None:
        """What chooses among the candidates of a task; None: there is one."""
        found = self.candidates.get(task, Candidates())
        if found.count == 1:
            return None
        return found.rank or ("likelihood" if task == "caption" else "clip")

    @property
    def needs_clip(self) -> bool:
        """Whether candidates of some task are ranked by the retriever's encoder."""
        return any(self.ranked_by(task) == "clip" for task in self.tasks)

    @property
    def needs_vectors(self) -> bool:
        """Whether captions are ranked by how well they fit the picture itself."""
        return "caption" in self.tasks and self.ranked_by("caption") == "clip"
