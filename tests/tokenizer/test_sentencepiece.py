"""SentencePiece models, as T5 saves them, against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.tokenizer import Tokenizer
from tests.tokenizer.hugging_face import (
    CORPUS,
    SAMPLES,
    assert_equal,
    assert_same_roles,
    automatic,
    sentencepiece_model,
)


@pytest.mark.parametrize("config", [None, {"extra_ids": 5}])
def test_sentencepiece_of_t5(tmp_path: Path, config: dict[str, Any] | None):
    pytest.importorskip("google.protobuf")
    sentencepiece_model(tmp_path, "spiece", CORPUS, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a <extra_id_0> b <extra_id_4>", "ﬁne ①"]
    theirs = automatic(tmp_path)
    assert_same_roles(ours, theirs)
    for text in samples:
        assert_equal(ours, theirs, text)
    assert ours.encode("a", second="b") == theirs("a", "b")["input_ids"]
