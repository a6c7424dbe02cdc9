"""A tokenizer as llama.cpp's metadata. It has an algorithm of its own for each kind, and reads no `tokenizer.json`:
what its algorithms do in another way is refused, or said in a sentence.

entries         the tokens, their types and roles, and what stands around a text
byte_bpe        BPE over bytes (GPT-2, LLaMA 3, Qwen2)
sentence_bpe    SentencePiece's BPE (LLaMA 2, Mistral)
word_piece      BERT's WordPiece
unigram         SentencePiece's unigram (T5)
"""

import json
from typing import Any

from anyformer.checkpoint.gguf.vocabulary import byte_bpe, sentence_bpe, unigram, word_piece
from anyformer.checkpoint.gguf.vocabulary.entries import ENDS, Entries, roles
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.gguf import KEY


def vocabulary(tokenizer: Tokenizer | None, config: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a tokenizer, and a sentence for everything that llama.cpp does in another way.

    Raises:
        UserError: a tokenizer that llama.cpp can't follow, and why.
    """
    notes: list[str] = []
    if len(config.special_tokens.eos) > len(ENDS):
        notes.append(
            f"A GGUF file has {len(ENDS)} tokens that end a text, of the model's {len(config.special_tokens.eos)}."
        )
    # The tokenizer's keys are where llama.cpp looks for the number of segments.
    segments = {} if config.decoder_layers else {"token_type_count": max(1, config.embedding.segments)}
    if tokenizer is None:
        notes.append("The model has no tokenizer, so llama.cpp can be given token ids but no text.")
        return _prefixed({"model": "none", **roles(None, config), **segments}), notes
    entries = Entries.of(tokenizer, config.vocab_size, notes)
    pipeline = json.loads(tokenizer.backend.to_str())
    model = pipeline["model"]
    if model["type"] == "BPE":
        describe = sentence_bpe.describe if model.get("byte_fallback") else byte_bpe.describe
    elif model["type"] in _KINDS:
        describe = _KINDS[model["type"]]
    else:
        raise UserError(f"llama.cpp has no tokenizer of the kind {model['type']}.")
    said = {**roles(tokenizer, config), **describe(pipeline, entries, notes), **entries.metadata(), **segments}
    template = {} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template}
    return {**_prefixed(said), **template}, notes


_KINDS = {"WordPiece": word_piece.describe, "Unigram": unigram.describe}


def _prefixed(said: dict[str, Any]) -> dict[str, Any]:
    return {f"{KEY}{key}": value for key, value in said.items()}
