"""Tokenizers that are trained once."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.tokenizer import Tokenizer
from tests.tokenizer.hugging_face import CORPUS, KINDS, automatic


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Tokenizer, Any]]:
    result: dict[tuple[str, str], tuple[Tokenizer, Any]] = {}
    for spec, special in KINDS:
        directory = tmp_path_factory.mktemp("trained")
        tokenizer = Tokenizer.train(CORPUS, spec, special=special)
        tokenizer.save(directory)
        result[spec, special] = (tokenizer, automatic(directory))
    return result
