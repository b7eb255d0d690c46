"""Twelve faults of the kind that trains well and measures wrong, each caught by a named law.

A fault is planted by changing one expression of the real code, in memory; then the law of
docs/laws.md that forbids it is run by pytest as it stands, and must fail.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Edit:
    """One expression of a function, made wrong."""

    function: str
    right: str
    wrong: str


@dataclass(frozen=True)
class Fault:
    name: str
    law: str
    edits: tuple[Edit, ...]


def fault(name, law, *edits):
    return Fault(name, f"tests/racm3/{law}", tuple(Edit(*edit) for edit in edits))


FAULTS = (
    fault(
        "sentinel predicted",
        "objective/test_masking.py::test_a_sentinel_is_never_predicted",
        ("racm3.objective.masking.to_row", "weights[masked.inserted == _SENTINEL] = 0", "pass"),
    ),
    fault(
        "last `<eoss>` cut",
        "objective/test_masking.py::test_masking_adds_two_sentinels_and_an_eoss_a_span",
        ("racm3.objective.masking.mask", "Masked(ids=ids,", "Masked(ids=ids[:length],"),
    ),
    fault(
        "empty span kept",
        "objective/test_spans.py::test_spans_are_ordered_disjoint_and_not_empty",
        ("racm3.objective.spans._uniform_candidates", ", starts + 1)", ", starts)"),
        ("racm3.objective.spans.Span.__post_init__", "start < self.stop", "start <= self.stop"),
    ),
    fault(
        "span across samples",
        "objective/test_spans.py::test_no_span_leaves_its_sample",
        ("racm3.objective.spans._uniform_spans", "len(sequence.ids) - 1", "len(sequence.ids)"),
    ),
    fault(
        "weights not permuted",
        "objective/test_masking.py::test_weights_and_slots_move_with_the_tokens",
        (
            "racm3.objective.masking.to_row",
            "sequence.weights(alpha)[masked.owners]",
            "np.resize(sequence.weights(alpha), len(masked.ids))",
        ),
    ),
    fault(
        "alpha on the wrong role",
        "objective/test_loss.py::test_alpha_0_is_the_loss_without_contexts",
        (
            "racm3.sequence.layout.Sequence.weights",
            "np.float32(1.0), np.float32(alpha)",
            "np.float32(alpha), np.float32(1.0)",
        ),
    ),
    fault(
        "own document retrieved",
        "retriever/test_selection.py::test_no_document_is_its_own_context",
        ("racm3.retriever.selection._Walk.reason", "return SkipReason.ITSELF", "pass"),
    ),
    fault(
        "near copy kept",
        "retriever/test_selection.py::test_no_context_is_a_near_copy_of_the_document_or_of_another",
        (
            "racm3.retriever.selection._Walk._near_copy",
            "return SkipReason.NEAR_COPY_OF_DOCUMENT",
            "return None",
        ),
    ),
    fault(
        "similarity taken on the query vector",
        "retriever/test_selection.py::test_a_document_is_skipped_for_the_reason_given",
        (
            "racm3.retriever.selection._Walk.reason",
            "return self._near_copy(position)",
            "return (score > 0.9 and SkipReason.NEAR_COPY_OF_DOCUMENT)",
        ),
    ),
    fault(
        "wrong document order",
        "sequence/test_layout.py"
        "::test_contexts_stand_in_the_order_given_and_the_main_document_last",
        ("racm3.sequence.layout.lay_out", "(*contexts, main)", "(*contexts[::-1], main)"),
    ),
    fault(
        "grammar off by one",
        "sampling/test_grammar.py::test_any_image_has_exactly_its_codes",
        ("racm3.sampling.grammar.Grammar.done", "not self.room", "self.room == 1"),
    ),
    fault(
        "KV cache shifted",
        "generator/test_cache.py::test_reading_with_a_cache_equals_reading_at_once",
        ("racm3.generator.cache.Cache.extend", ": stop] = key", ": stop] = key.roll(1, 2)"),
    ),
)


def plant(monkeypatch, edit):
    """Gives the function the code of its changed source, wherever it was imported to."""
    module_name, _, name = edit.function.rpartition(".")
    path = [name]
    while not (ROOT / module_name.replace(".", "/")).with_suffix(".py").exists():
        module_name, _, owner = module_name.rpartition(".")
        path.insert(0, owner)
    module = importlib.import_module(module_name)
    function = module
    for part in path:
        function = getattr(function, part)
    function = getattr(function, "fget", function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.right) == 1, f"{edit.function} has changed: plant the fault anew"
    namespace = dict(vars(module))
    exec(compile(source.replace(edit.right, edit.wrong), edit.function, "exec"), namespace)
    changed = namespace[function.__name__]
    monkeypatch.setattr(function, "__code__", getattr(changed, "fget", changed).__code__)


class Verdicts:
    """What became of each test: the exception that it ended with, or None."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_makereport(self, item, call):
        if call.when == "call":
            self.of[item.nodeid] = call.excinfo and call.excinfo.type


def verdicts(*laws):
    """Runs laws in this process, with whatever is planted in it."""
    seen = Verdicts()
    unneeded = ("timeout", "cacheprovider", "faulthandler")
    options = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", "-qs"]
    options += [word for name in unneeded for word in ("-p", f"no:{name}")]
    pytest.main([*options, *(str(ROOT / law) for law in laws)], plugins=[seen])
    assert set(seen.of) == set(laws)
    return seen.of


def test_without_a_fault_the_laws_hold():
    assert set(verdicts(*(fault.law for fault in FAULTS)).values()) == {None}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_by_its_law(fault, monkeypatch):
    for edit in fault.edits:
        plant(monkeypatch, edit)
    assert verdicts(fault.law)[fault.law] in (AssertionError, ValueError)


# --- docs/laws.md ---------------------------------------------------------------------------

LISTED = dict(re.findall(r"^\|.+\| `(tests/\S+::\w+)` \| (.+?) \|$", PAGE, re.MULTILINE))
PLANTED = re.findall(r"^\| (.+?) \| (`racm3\..+`) \| `(tests/\S+)` \|$", PAGE, re.MULTILINE)


def parameters(path):
    """Names of a file's tests, and what each one takes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: {argument.arg for argument in node.args.args} for node in functions}


def test_the_laws_of_the_page_exist_and_have_the_number_of_cases_that_it_says():
    assert len(LISTED) >= 20
    for law, cases in LISTED.items():
        file, name = law.split("::")
        found = parameters(ROOT / file)
        assert name in found, law
        assert ("cases" in found[name]) == (cases == "1,000"), law


def test_the_page_lists_every_law_of_1000_cases():
    written = {
        f"{path.relative_to(ROOT)}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name, taken in parameters(path).items()
        if "cases" in taken
    }
    assert written <= set(LISTED)


def test_the_faults_of_the_page_are_those_planted():
    planted = [
        (fault.name, ", ".join(f"`{edit.function}`" for edit in fault.edits), fault.law)
        for fault in FAULTS
    ]
    assert len(planted) == 12
    assert planted == PLANTED
