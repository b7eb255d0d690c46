"""What a generator is trained on: read, and refused where it is not for training."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import UsageError
from pipelines.records import examples_of
from pipelines.runtime.reader import Reader, Selection
from racm3.training.episodes import has_episodes
from racm3.training.examples import Example
from racm3.training.stream import StreamConfig

__all__ = ["check_episodes", "read_training_examples"]


def read_training_examples(reader: Reader, selection: Selection, role: str) -> list[Example]:
    """All examples of an input.

    Args:
        reader: Of the store.
        selection: `examples`, of one role.
        role: That they must be of, `train` or `validation`.

    Raises:
        UsageError: They are of another role, or there are none.
    """
    shards = selection.tables("examples")
    wrong = {s.tags.get("role", "") for s in shards} - {role}
    if wrong or not shards:
        raise UsageError(
            f"train_generator: input {role} holds {sorted(wrong) or 'no'} examples; "
            f"it reads only role {role}"
        )
    return examples_of(reader.tables(shards))


def check_episodes(stream: StreamConfig, train: Sequence[Example]) -> None:
    """Refuses to train with episodes where no document could have one.

    Raises:
        UsageError: The stream asks for episodes and has none.
    """
    if not stream.episodes or has_episodes(train, stream.episode_sources):
        return
    others = stream.episode_sources == "others"
    raise UsageError(
        f"train_generator: stream.episodes is {stream.episodes}, but no category has "
        f"training documents of two concepts{' by two sources' if others else ''}; give the "
        f"documents categories, or set it to 0{', or episode_sources to any' if others else ''}"
    )
