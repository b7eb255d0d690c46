"""Names of emoji: code keys, base concepts and the two independent captions. Pure functions.

A *code* is the characters of one emoji as hexadecimal code points joined by hyphens, lower case,
four digits at least, variation selectors (U+FE0F) left out: `1f1e7-1f1f9` is the flag of Bhutan.
Both drawing packages and both name packages spell their keys differently; all are brought to this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

TONES = {
    "1f3fb": "type-1-2",
    "1f3fc": "type-3",
    "1f3fd": "type-4",
    "1f3fe": "type-5",
    "1f3ff": "type-6",
}
"""Skin tone modifiers and the Fitzpatrick type that Unicode names them by."""

_VARIATION, _JOINER = "fe0f", "200d"
_GENDER_SIGNS = frozenset({"2640", "2642"})
_HAIR = frozenset({"1f9b0", "1f9b1", "1f9b2", "1f9b3"})
_PERSON, _CHILD, _FAMILY = "1f9d1", "1f9d2", "1f46a"
_SAME_PERSON = {
    "1f468": _PERSON,  # man
    "1f469": _PERSON,  # woman
    "1f471": _PERSON,  # blond hair
    "1f9d4": _PERSON,  # beard
    "1f466": _CHILD,  # boy
    "1f467": _CHILD,  # girl
    "1f474": "1f9d3",  # old man
    "1f475": "1f9d3",  # old woman
    "1f934": "1fac5",  # prince
    "1f478": "1fac5",  # princess
    "1f930": "1fac4",  # pregnant woman
    "1fac3": "1fac4",  # pregnant man
    "1f483": "1f57a",  # woman dancing
}
_SAME_SEQUENCE = {
    "1f46b": "1f9d1-1f91d-1f9d1",  # woman and man holding hands
    "1f46c": "1f9d1-1f91d-1f9d1",
    "1f46d": "1f9d1-1f91d-1f9d1",
    "1f491": "1f9d1-2764-1f9d1",  # couple with heart
    "1f48f": "1f9d1-2764-1f48b-1f9d1",  # kiss
    "1f9d1-1f430-1f9d1": "1f46f",  # people with bunny ears
    "1f9d1-1faef-1f9d1": "1f93c",  # people wrestling
    "1faf1-1faf2": "1f91d",  # handshake of two tones
    "1f936": "1f9d1-1f384",  # Mrs. Claus
    "1f385": "1f9d1-1f384",  # Santa Claus
    "1f931": "1f9d1-1f37c",  # breast-feeding, feeding
}


def code_of(text: str) -> str:
    """The code of an emoji, given as characters or as hyphenated code points of any spelling.

    Args:
        text: the emoji itself, or a file stem such as `1F1E7-1F1F9` or `23-fe0f-20e3`.

    Returns:
        The code (see the module), empty when nothing but variation selectors was given.
    """
    if re.fullmatch(r"[0-9A-Fa-f]{2,6}(-[0-9A-Fa-f]{2,6})*", text):
        parts = [part.lower().zfill(4) for part in text.split("-")]
    else:
        parts = [f"{ord(character):04x}" for character in text]
    return "-".join(part.lstrip("0").zfill(4) for part in parts if part != _VARIATION)


def without_tones(code: str) -> str:
    """The code without its skin tones; a lone tone stays what it is."""
    parts = [part for part in code.split("-") if part not in TONES]
    return "-".join(parts) or code


def base_concept(code: str) -> str:
    """The base concept of an emoji: its code without tones, genders, hair and ages of a person.

    All that shows one person, couple or family in other tones, genders or hair is one concept, so
    that holding a concept out holds out every relative which would give the drawing away.
    """
    parts = [p for p in without_tones(code).split("-") if p not in _GENDER_SIGNS]
    parts = [p for p in parts if p != _JOINER and p not in _HAIR]
    if not parts:
        return code
    people = [_SAME_PERSON.get(part, part) for part in parts]
    if len(people) > 1 and set(people) <= {_PERSON, _CHILD}:
        return _FAMILY
    joined = "-".join(people)
    return _SAME_SEQUENCE.get(joined, joined)


def is_flag(code: str) -> bool:
    """Whether the code is the flag of a country or of a part of one (England, Scotland, Wales)."""
    parts = [int(part, 16) for part in code.split("-")]
    regional = len(parts) == 2 and all(0x1F1E6 <= part <= 0x1F1FF for part in parts)
    return regional or (parts[0] == 0x1F3F4 and parts[-1] == 0xE007F)


def cldr_caption(code: str, short_name: str) -> str:
    """A Twemoji caption from the `emoji` package's short name, such as `:woman_cook:`.

    The package drops CLDR's prefix `flag: `; it is put back.
    """
    words = short_name.strip(":").replace("_", " ")
    return f"flag: {words}" if is_flag(code) else words


def unicode_caption(code: str, names: Mapping[str, str]) -> str | None:
    """An OpenMoji caption from Unicode names: the untoned name, then the tones' types.

    Args:
        code: the emoji.
        names: Unicode names by code; toned codes may be missing, or bear the untoned name.

    Returns:
        For instance `male cook, fitzpatrick type-5`; None where Unicode data has no such name.
    """
    name = names.get(code) or names.get(without_tones(code))
    if name is None:
        return None
    plain = name.lower() if name.isupper() else name
    tones = [TONES[part] for part in code.split("-") if part in TONES and part != code]
    return plain + "".join(f", fitzpatrick {tone}" for tone in tones)


def merge_concepts(concepts: Mapping[str, str], same: Iterable[Iterable[str]]) -> dict[str, str]:
    """Concepts after joining those that share a picture.

    Some flags are drawn alike to the pixel (Norway and Svalbard): one of them in training
    would give the other away, so they are one concept.

    Args:
        concepts: concept of every code.
        same: groups of codes whose drawings are the same picture.

    Returns:
        Concept of every code; a joined one bears the smallest name of its parts.
    """
    parent = {concept: concept for concept in concepts.values()}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            concept = parent[concept]
        return concept

    for group in same:
        roots = sorted({root(concepts[code]) for code in group})
        for other in roots[1:]:
            parent[other] = roots[0]
    return {code: root(concept) for code, concept in concepts.items()}
