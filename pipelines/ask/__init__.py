"""A generator asked by hand: artifacts loaded, contexts found, a task drawn, its origin written.

| question | module |
|---|---|
| what is there, and does it fit together | `artifacts` |
| what is a person's picture or document, and where is its box | `given` |
| what does the memory say | `retrieving` |
| what is asked, and how | `question` |
| what is drawn | `session` |
| of which class is a picture | `classifying` |
| from what | `answer` |
"""

from pipelines.ask.answer import Answer, check_output
from pipelines.ask.artifacts import only_namespace
from pipelines.ask.classifying import Classified, read_classes
from pipelines.ask.given import read_box
from pipelines.ask.question import HOLE, Settings
from pipelines.ask.session import Session

__all__ = [
    "HOLE",
    "Answer",
    "Classified",
    "Session",
    "Settings",
    "check_output",
    "only_namespace",
    "read_box",
    "read_classes",
]
