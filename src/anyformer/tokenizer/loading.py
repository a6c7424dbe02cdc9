"""Loading a Tokenizer from a directory, whichever files it has.

Of directories from before `tokenizer.json` the pipeline is built from the vocabulary files by convention.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from anyformer import limits
from anyformer.errors import UserError, cut, quote
from anyformer.tokenizer import files, sentencepiece
from anyformer.tokenizer.core import Tokenizer
from anyformer.tokenizer.library import bert_normalizer, byte_words, surround, translated, word_piece


def load(path: Path) -> Tokenizer:
    """Load from a directory or from one of its files. See `Tokenizer.load`."""
    if not path.exists():
        raise UserError(f"There is no tokenizer at {path}: no such file or directory.")
    directory = path if path.is_dir() else path.parent
    with translated(f"The tokenizer in {directory} has a field that is missing or misshapen"):
        return _read(path, directory)


def _read(path: Path, directory: Path) -> Tokenizer:
    limits.check_files(directory, files.TOKENIZER_FILES, limits.JSON_BYTES)
    companions = {
        name: limits.read_bytes(directory / name) for name in files.COMPANIONS if (directory / name).is_file()
    }
    parsed = {
        name: limits.parse_object(content, directory / name)
        for name, content in companions.items()
        if name.endswith(".json")
    }
    config = parsed.get(files.CONFIG, {})
    chosen = path / files.TOKENIZER if path.is_dir() else path
    if chosen.suffix == ".json" and chosen.is_file() and chosen.name != "vocab.json":
        content = limits.read_bytes(chosen)
        with translated(f"{chosen} is not a tokenizer that the tokenizers library can read"):
            try:
                backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            except Exception:
                limits.parse_object(content, chosen)  # or it says where this is no JSON
                raise
        is_bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
        if is_bert and "do_lower_case" in config and config.get("tokenizer_class") not in files.GENERIC_CLASSES:
            # it and its like win over tokenizer.json, as in BERT's own class
            backend.normalizer = bert_normalizer(config)
        _surround_with_language(backend, config)
        return Tokenizer(backend, config, {**companions, files.TOKENIZER: content})
    if all((directory / name).is_file() for name in sentencepiece.PAIR):
        return sentencepiece.MarianTokenizer(directory, config, companions)
    declared = files.declared(config, parsed.get(files.SPECIAL_MAP))
    for names, build in _LEGACY.items():
        if all((directory / name).is_file() for name in names):
            return Tokenizer(build(directory, declared), config, companions)
    for name in ("tokenizer.model", "sentencepiece.bpe.model"):
        if not (directory / name).is_file():
            continue
        raise UserError(
            f"{directory} has only a SentencePiece {name}: open it once with transformers' "
            "AutoTokenizer and save_pretrained it, which writes the tokenizer.json that is read here."
        )
    raise UserError(
        f"There is no tokenizer in {path}: none of tokenizer.json, vocab.txt, vocab.json with "
        "merges.txt or sentencepiece.bpe.model, spiece.model, spm.model, or source.spm with target.spm and vocab.json."
    )


_LANGUAGES = {
    "NllbTokenizer": ("eng_Latn", True),
    "MBart50Tokenizer": ("en_XX", True),
    "MBartTokenizer": ("en_XX", False),
}
"""Tokenizers of translation: the language of a source unless `src_lang` names one, and whether its token is first."""


def _surround_with_language(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Put the token of the source's language before a text, or after its end: the class wins over tokenizer.json."""
    usual, is_first = _LANGUAGES.get(str(config.get("tokenizer_class")).removesuffix("Fast"), (None, False))
    language, end = config.get("src_lang") or usual, str(config.get("eos_token") or "</s>")
    ids = {token: backend.token_to_id(str(token)) for token in (language, end)}
    if usual is None or ids[end] is None:
        return
    if ids[language] is None:
        raise UserError(f"tokenizer_config.json: the language {quote(language)} (src_lang) is not in the vocabulary.")
    before, after = ([language], [end]) if is_first and not config.get("legacy_behaviour") else ([], [end, language])
    single, pair = ([*before, *texts, *after] for texts in (["$A"], ["$A", "$B"]))
    tokens = cast("Any", list(ids.items()))
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def _word_piece(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from `vocab.txt`, see `word_piece`."""
    path = directory / "vocab.txt"
    with translated(f"{path} can't be read as a WordPiece vocabulary"):
        vocabulary = models.WordPiece.read_file(str(path))
    roles = files.roles_of(config, vocabulary.get)
    if any(role not in roles or roles[role].content not in vocabulary for role in ("unk", "cls", "sep")):
        raise UserError(f"{path} has no [UNK], [CLS] and [SEP], so it is not a BERT vocabulary.")
    unk, cls, sep = (roles[role].content for role in ("unk", "cls", "sep"))
    return word_piece(vocabulary, config, unk, cls, sep)


def _byte_level(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's or RoBERTa's byte-level BPE from `vocab.json` and `merges.txt` (Radford et al. 2019).

    The two differ in what surrounds a text: RoBERTa's vocabulary has <s>, </s> and <mask> and puts the first two
    around it. Qwen2's splits words by another pattern. Any other class is refused, since its rules can't be known.
    """
    name = str(config.get("tokenizer_class") or "")
    kind = name.removesuffix("Fast")
    if kind not in ("", "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "Qwen2Tokenizer"):
        raise UserError(
            f"{directory} has no tokenizer.json, and {cut(name)} can't be built from its "
            "vocab.json and merges.txt here: open it once with transformers' AutoTokenizer and save_pretrained it."
        )
    with translated(f"{directory} holds a vocab.json and merges.txt that can't be read"):
        vocabulary, merges = models.BPE.read_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.ByteLevel()
    space = bool(config.get("add_prefix_space", False))
    if kind == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = byte_words(add_prefix_space=space)
        return backend
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    roles = {role: token.content for role, token in files.roles_of(config, vocabulary.get).items()}
    if "cls" in roles and "sep" in roles:
        sep, cls = ((roles[role], vocabulary[roles[role]]) for role in ("sep", "cls"))
        backend.post_processor = processors.RobertaProcessing(sep, cls, bool(config.get("trim_offsets", True)), space)
    else:
        before = roles.get("bos") if config.get("add_bos_token") else None
        after = roles.get("eos") if config.get("add_eos_token") else None
        surround(backend, before, after, second_segment=1)
    return backend


_LEGACY = {
    ("vocab.json", "merges.txt"): _byte_level,
    ("vocab.txt",): _word_piece,
    ("spiece.model",): sentencepiece.unigram,
    ("spm.model",): sentencepiece.disentangled,
    ("sentencepiece.bpe.model", "vocab.json"): sentencepiece.many_to_many,
}
