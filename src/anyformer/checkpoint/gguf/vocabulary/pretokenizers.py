"""The name that llama.cpp has for the way a tokenizer cuts words (`tokenizer.ggml.pre`).

llama.cpp has each of them compiled in, and a file only names one: another way of cutting gives other tokens, so what
has no name can't be expressed.
"""

import json
from typing import Any, cast

from anyformer.errors import UserError
from anyformer.tokenizer.pretokenizers import CUTS

Step = tuple[str, ...]
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` cuts by where it is asked to."""
_INEXACT = ("tekken", "falcon", "default")
"""Names under which llama.cpp cuts some texts in another way than the tokenizers that go by them."""


def name_of(pre_tokenizer: Any, *, ignores_merges: bool, composes: bool) -> str:
    """The name for a `pre_tokenizer` of tokenizer.json. Raises UserError where there is none.

    Args:
        pre_tokenizer: The JSON.
        ignores_merges: A word that is a token stays whole.
        composes: Text is brought into the form NFC first. llama.cpp never does, but some names promise it.
    """
    steps = _steps(pre_tokenizer)
    for cut in CUTS:
        same = steps == _steps(json.loads(cast("Any", cut.build()).__getstate__()))
        if same and cut.names[0] not in _INEXACT and (cut.ignores_merges, cut.composes) == (ignores_merges, composes):
            return cut.names[0]
    if composes:
        return name_of(pre_tokenizer, ignores_merges=ignores_merges, composes=False)
    raise UserError(
        "llama.cpp has no name for the way this tokenizer cuts words (its pre_tokenizer); it knows those of GPT-2, "
        "SmolLM, LLaMA 3 and Qwen2, the last of which `anyformer train` makes."
    )


def _steps(part: Any) -> list[Step]:
    """The steps in one notation, as the same cut can be written in several ways."""
    kind = part["type"] if part else "nothing"
    if kind == "Sequence":
        return [step for inner in cast("list[Any]", part["pretokenizers"]) for step in _steps(inner)]
    if kind == "Digits" and part.get("individual_digits"):
        return [("digits",)]
    if kind == "Split" and part["behavior"] == "Isolated" and not part.get("invert") and "Regex" in part["pattern"]:
        return [("split", str(part["pattern"]["Regex"]))]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return [("split", _GPT2), ("bytes",)] if part.get("use_regex", True) else [("bytes",)]
    return [("other", str(kind))]
