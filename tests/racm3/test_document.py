from __future__ import annotations

import dataclasses

import pytest

from racm3.document import Document, DocumentTokens


def test_documents_are_frozen_and_take_names_only():
    tokens = DocumentTokens(text=(1, 2), image=(3,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.text = ()
    with pytest.raises(TypeError):
        Document("id", "caption", None)
    assert tokens == DocumentTokens(text=(1, 2), image=(3,))
    assert hash(tokens) == hash(DocumentTokens(text=(1, 2), image=(3,)))
