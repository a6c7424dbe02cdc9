"""Directories from before `tokenizer.json`: the pipeline is built from the vocabulary files by convention."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from anyformer.errors import UserError, cut
from anyformer.tokenizer.library import Translated
from anyformer.tokenizer.special import roles_of, surround

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is split into words before byte-level BPE: the published pattern of Qwen2, which is that of OpenAI's
cl100k_base with single digits. Unlike GPT-2's it keeps indentation together, which suits code."""


def word_piece(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from `vocab.txt` (Devlin et al. 2018): clean, split on space and punctuation, WordPiece."""
    path = directory / "vocab.txt"
    with Translated(f"{path} can't be read as a WordPiece vocabulary"):
        vocabulary = models.WordPiece.read_file(str(path))
    roles = roles_of(config, vocabulary)
    if any(role not in roles or roles[role].content not in vocabulary for role in ("unk", "cls", "sep")):
        raise UserError(f"{path} has no [UNK], [CLS] and [SEP], so it is not a BERT vocabulary.")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=roles["unk"].content))
    backend.normalizer = bert_normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    surround_sentences(backend, roles["cls"].content, roles["sep"].content)
    return backend


def bert_normalizer(config: Mapping[str, Any]) -> normalizers.BertNormalizer:
    """BERT's text cleaning, as the config asks: lower case unless it says otherwise."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )


def surround_sentences(backend: tokenizers.Tokenizer, cls: str, sep: str) -> None:
    """Make it `[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` with segment 1 for the second text."""
    surround(backend, cls, sep, second_segment=1, before_second=False)


def byte_level(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's or RoBERTa's byte-level BPE from `vocab.json` and `merges.txt` (Radford et al. 2019).

    The two differ in what surrounds a text: RoBERTa's vocabulary has <s>, </s> and <mask> and puts the first two
    around it. Qwen2's splits words by another pattern. Any other class is refused, since its rules can't be known.
    """
    name = str(config.get("tokenizer_class") or "")
    build = _BYTE_LEVEL.get(name.removesuffix("Fast"))
    if build is None:
        raise UserError(
            f"{directory} has no tokenizer.json, and {cut(name)} can't be built from its "
            "vocab.json and merges.txt here: open it once with transformers' AutoTokenizer and save_pretrained it."
        )
    with Translated(f"{directory} holds a vocab.json and merges.txt that can't be read"):
        vocabulary, merges = models.BPE.read_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.ByteLevel()
    build(backend, vocabulary, config)
    return backend


def _bpe_words(backend: tokenizers.Tokenizer, vocabulary: Mapping[str, int], config: Mapping[str, Any]) -> None:
    space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    roles = roles_of(config, vocabulary)
    if "cls" in roles and "sep" in roles:
        cls, sep = roles["cls"].content, roles["sep"].content
        backend.post_processor = processors.RobertaProcessing(
            (sep, vocabulary[sep]), (cls, vocabulary[cls]), bool(config.get("trim_offsets", True)), space
        )
        return
    before = roles.get("bos") if config.get("add_bos_token") else None
    after = roles.get("eos") if config.get("add_eos_token") else None
    surround(backend, before and before.content, after and after.content, second_segment=1)


def _pattern_words(backend: tokenizers.Tokenizer, vocabulary: Mapping[str, int], config: Mapping[str, Any]) -> None:
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = byte_words(add_prefix_space=bool(config.get("add_prefix_space") or False))


def byte_words(*patterns: str, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    """Split text by one pattern after the other, else by WORD_PATTERN, and write each byte as a printable character."""
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated", invert=False) for p in patterns or (WORD_PATTERN,)]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)]
    )


_BYTE_LEVEL = {
    "": _bpe_words,
    "GPT2Tokenizer": _bpe_words,
    "RobertaTokenizer": _bpe_words,
    "BartTokenizer": _bpe_words,
    "Qwen2Tokenizer": _pattern_words,
}


def vocabulary_files(backend: tokenizers.Tokenizer) -> dict[str, bytes]:
    """The files of BERT's and GPT-2's pipelines in such a directory, by name, for readers that ask for them (KerasHub).

    Returns {} for every other pipeline: its vocabulary alone would give other ids.
    """
    pipeline: dict[str, Any] = json.loads(backend.to_str())
    model = pipeline["model"]
    pre_tokenizer: dict[str, Any] = pipeline["pre_tokenizer"] or {}
    normalizer: dict[str, Any] = pipeline["normalizer"] or {}
    kinds = model["type"], pre_tokenizer.get("type"), normalizer.get("type")
    if kinds == ("WordPiece", "BertPreTokenizer", "BertNormalizer") and model["continuing_subword_prefix"] == "##":
        return {"vocab.txt": "".join(f"{token}\n" for token in sorted(model["vocab"], key=model["vocab"].get)).encode()}
    if kinds == ("BPE", "ByteLevel", None):
        if pre_tokenizer["add_prefix_space"] or not pre_tokenizer.get("use_regex", True):
            return {}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False).encode(),
            "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)).encode(),
        }
    return {}
