"""BERT's WordPiece, llama.cpp's `bert` (Devlin et al. 2018).

llama.cpp marks the tokens that begin a word, as SentencePiece does, and not those that go on with one: `token` is
written `▁token`, and `##ise` is written `ise`.
"""

from typing import Any

from anyformer.checkpoint.gguf.vocabulary.entries import Entries
from anyformer.errors import UserError
from anyformer.tokenizer.gguf import CONTROL, UNUSED
from anyformer.tokenizer.sentencepiece import SPACE


def describe(pipeline: Any, entries: Entries, notes: list[str]) -> dict[str, Any]:
    """The metadata. Raises UserError for what llama.cpp's algorithm can't follow."""
    model, normalizer = pipeline["model"], pipeline.get("normalizer") or {"type": "nothing"}
    words = pipeline.get("pre_tokenizer") or {"type": "nothing"}
    if normalizer["type"] != "BertNormalizer" or words["type"] != "BertPreTokenizer":
        raise UserError("llama.cpp's WordPiece cleans and cuts text as BERT does, and this tokenizer does not.")
    if not normalizer["clean_text"] or not normalizer["handle_chinese_chars"]:
        raise UserError(
            "llama.cpp's WordPiece always cleans text and parts Chinese characters; this tokenizer doesn't."
        )
    if len(entries.before) != 1 or len(entries.after) != 1:
        raise UserError("llama.cpp's WordPiece puts one token before a text and one after it; this tokenizer doesn't.")
    prefix = str(model["continuing_subword_prefix"])
    entries.tokens = [
        token
        if kind in (CONTROL, UNUSED)
        else token.removeprefix(prefix)
        if token.startswith(prefix)
        else SPACE + token
        for token, kind in zip(entries.tokens, entries.kinds, strict=True)
    ]
    notes.append(
        f"llama.cpp also cuts up words of more than {model['max_input_chars_per_word']} characters, which this "
        "tokenizer gives up on."
    )
    lowercase = bool(normalizer["lowercase"])
    accents = normalizer["strip_accents"]
    return {
        "model": "bert",
        "pre": "default",
        "bos_token_id": entries.before[0],
        "seperator_token_id": entries.after[0],
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }
