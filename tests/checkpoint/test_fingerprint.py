"""The fingerprint of weights: the same wherever they are, another one for any change of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.checkpoint import weights_fingerprint
from anyformer.checkpoint.fingerprint import _BLOCK
from anyformer.errors import UserError
from anyformer.model import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return af.build(af.preset("llama-nano", vocab_size=3000, d_model=128, decoder_layers=2))


def test_it_is_that_of_the_content(model: Transformer, tmp_path: Path) -> None:
    for kind in ("whole", "shards"):
        af.save(model, tmp_path / kind, max_shard_size=10**12 if kind == "whole" else 10**6)
    af.save_gguf(model, tmp_path / "model.gguf")
    paths = [tmp_path / name for name in ("whole", "shards", "model.gguf")]
    found = [weights_fingerprint(path) for path in paths]
    assert len(set(found)) == len(paths)
    shutil.copytree(tmp_path / "shards", tmp_path / "run" / "model")
    assert weights_fingerprint(tmp_path / "run") == found[1]
    (tmp_path / "whole" / "config.json").write_text("{}")
    assert weights_fingerprint(tmp_path / "whole") == found[0]


def test_any_change_changes_it(model: Transformer, tmp_path: Path) -> None:
    af.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    assert len(content) > 2 * _BLOCK
    first = weights_fingerprint(tmp_path)
    places = [0, 7, _BLOCK - 1, _BLOCK, len(content) // 2, len(content) - 1]
    changed = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
    changed += [content + b"\0", content[:-1]]
    # Rows of a table in another order.
    row = 4 * model.config.d_model
    begin = len(content) - 9 * row
    changed.append(content[:begin] + content[begin + row : begin + 2 * row] + content[begin : begin + row])
    changed[-1] += content[begin + 2 * row :]
    assert len(changed[-1]) == len(content)
    found = []
    for each in changed:
        file.write_bytes(each)
        found.append(weights_fingerprint(tmp_path))
    assert len({first, *found}) == len(changed) + 1


def test_what_is_missing_is_named(model: Transformer, tmp_path: Path) -> None:
    af.save(model, tmp_path, max_shard_size=10**6)
    next(tmp_path.glob("*-00002-*")).unlink()
    with pytest.raises(UserError, match=r"model-00002.* can't be read"):
        weights_fingerprint(tmp_path)
