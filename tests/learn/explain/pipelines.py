"""Tokenizers as published models have them, small: of their own text, with the pipeline of each."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.library import WORD_PATTERN
from tests.tokenizer.hugging_face import CORPUS, sentencepiece_model

_LLAMA_3 = WORD_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _byte_pairs() -> models.BPE:
    trained = json.loads(Tokenizer.train(CORPUS, "bpe:400").backend.to_str())["model"]
    return models.BPE(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])


def gpt2() -> Tokenizer:
    backend = Backend(_byte_pairs())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return Tokenizer(backend, {})


def roberta() -> Tokenizer:
    backend = Backend(_byte_pairs())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    ids = {token: backend.token_to_id(token) for token in ("<s>", "</s>")}
    backend.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return Tokenizer(backend, {"mask_token": "<mask>", "eos_token": "</s>", "sep_token": "</s>", "bos_token": "<s>"})


def llama_2() -> Tokenizer:
    """SentencePiece's BPE: spaces become marks, there are no words, and unknown characters become bytes."""
    letters = sorted({character for text in CORPUS for character in text.replace(" ", "▁")} - {"日", "🙂"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    pairs = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("a", "n"),
        ("s", "p"),
        ("e", "r"),
        ("▁", "a"),
        ("▁", "▁"),
        ("e", "a"),
    ]
    vocabulary = {token: index for index, token in enumerate([*tokens, *(a + b for a, b in pairs)])}
    model = models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


def _words(*splits: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    backend = Backend(_byte_pairs())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {})


def llama_3() -> Tokenizer:
    return _words(pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"))


def qwen() -> Tokenizer:
    return _words(pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"), normalizer=normalizers.NFC())


def smollm() -> Tokenizer:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend = Backend(_byte_pairs())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, {})


def bert() -> Tokenizer:
    return Tokenizer.train(CORPUS, "wordpiece:300", special="masked", lowercase=True)


def t5(folder: Path) -> Tokenizer:
    """With the normalizer of the published tokenizer.json."""
    sentencepiece_model(folder, "spiece", CORPUS, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return Tokenizer.load(folder)


def t5_fast(folder: Path) -> Tokenizer:
    tokenizer = t5(folder)
    backend = tokenizer.backend
    stripped = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    backend.normalizer = normalizers.Sequence([backend.normalizer, *stripped])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    return Tokenizer(backend, tokenizer.config)


def words() -> Tokenizer:
    backend = Backend(models.WordLevel({"[UNK]": 0, "speak": 1, ",": 2, "hear": 3, "me": 4}, unk_token="[UNK]"))
    accents = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(accents)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous")]
    )
    return Tokenizer(backend, {"unk_token": "[UNK]"})


PIPELINES = {each.__name__: each for each in (gpt2, roberta, llama_2, llama_3, qwen, smollm, bert, words)}
FROM_FILES = {each.__name__: each for each in (t5, t5_fast)}
