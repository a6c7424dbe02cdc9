"""A page's tokenizer gives the ids and the text that `tokenizers` gives."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unicodedata import category

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers

from anyformer.config import SpecialTokens
from anyformer.errors import UserError
from anyformer.learn.explain.tokenizer import describe_tokenizer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt
from tests.learn.explain.javascript import needs_node, run
from tests.learn.explain.pipelines import FROM_FILES, PIPELINES
from tests.tokenizer.hugging_face import CORPUS, KINDS, SAMPLES

ENCODE = """
const answer = ({ description, texts }) => {
  const tokenizer = new TextTokenizer(description);
  return texts.map((text) => {
    const ids = tokenizer.plain(text), whole = tokenizer.encode(text);
    return [whole, ids, tokenizer.encodePrompt(text), tokenizer.decode(whole), tokenizer.decode(whole, false)];
  });
};
"""
FRAGMENTS = [
    *("e", "\u0301", "É", "ß", "İ", "Σ", "ﬁ", "½", "²", "I'm", "I'LL", "ſ", "don't", "12345", "...", "!", "_"),
    *("日本", "한국", "👩‍👩‍👧", "🇩🇪", "🙂", "\u200b", "\ufeff", "\u00ad", "\0", "\ufffd", "speak", "hear", "▁", "##"),
    *("[MASK]", "<mask>", "</s>", "<|endoftext|>", "<pad>", "<extra_id_0>", "[UNK]"),
]
SPACES = ["", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85"]
# Characters that Unicode has had for long: what is newer, libraries and browsers do not agree about.
STRIP = normalizers.StripAccents()
OLD = [
    character
    for character in map(chr, range(0x3000))
    if category(character) != "Cn" and (category(character)[0] != "M" or not STRIP.normalize_str(character))
]
POOLS = [[*FRAGMENTS, *SPACES, *SPACES], OLD, OLD[:0x300], sorted(set("".join(CORPUS)))]
drawn = settings(max_examples=8, suppress_health_check=list(HealthCheck))


def draw_texts(seed: int) -> list[str]:
    """125 texts: of hypothesis' own lists so many would take it minutes."""
    chance = random.Random(seed)
    return ["".join(chance.choices(chance.choice(POOLS), k=chance.randrange(40))) for _ in range(125)]


def check(tokenizer: Tokenizer, seed: int) -> None:
    def known(text: str) -> bool:
        try:
            tokenizer.require_encodable([text])
        except UserError:
            return False
        return True

    given_texts = [text for text in (*SAMPLES, *draw_texts(seed)) if known(text)]
    found = run(ENCODE, {"description": describe_tokenizer(tokenizer, SpecialTokens()), "texts": given_texts})
    for text, answer in zip(given_texts, found, strict=True):
        ids = tokenizer.encode(text)
        prompt = encode_decoder_prompt(tokenizer, text)
        expected = [ids, tokenizer.encode(text, special=False), prompt, tokenizer.decode(ids)]
        assert answer == [*expected, tokenizer.decode(ids, skip_special=False)], repr(text)


@cache
def trained(spec: str, special: str) -> Tokenizer:
    return Tokenizer.train(CORPUS, spec, special=special)


@cache
def published(name: str) -> Tokenizer:
    if name in PIPELINES:
        return PIPELINES[name]()
    with TemporaryDirectory() as folder:
        return FROM_FILES[name](Path(folder))


@needs_node
@pytest.mark.parametrize(
    ("spec", "special"),
    [
        pytest.param(
            *kind, marks=[] if kind in (("bpe:400", "any"), ("wordpiece:300", "masked")) else [pytest.mark.slow]
        )
        for kind in KINDS
    ],
)
@drawn
@given(seed=st.integers(0, 2**32))
def test_trained_here(spec: str, special: str, seed: int) -> None:
    check(trained(spec, special), seed)


@needs_node
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("llama_2", "t5_fast") else [pytest.mark.slow])
        for name in (*PIPELINES, *FROM_FILES)
    ],
)
@drawn
@given(seed=st.integers(0, 2**32))
def test_published_pipelines(name: str, seed: int) -> None:
    check(published(name), seed)


def _words(normalizer: object = None, pre_tokenizer: object = None, decoder: object = None) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if part is not None:
            setattr(backend, name, part)
    return Tokenizer(backend, {})


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (_words(normalizer=normalizers.Sequence([normalizers.Nmt()])), "the normalizer Nmt, and a page doesn't know"),
        (_words(pre_tokenizer=pre_tokenizers.UnicodeScripts()), "the pre-tokenizer UnicodeScripts"),
        (_words(decoder=tokenizers.decoders.CTC()), "the decoder CTC"),
        (_words(pre_tokenizer=pre_tokenizers.Split(Regex(r"a++b"), "isolated")), r"doesn't know '\+\+'"),
        (_words(pre_tokenizer=pre_tokenizers.Split(Regex(r"\bword"), "isolated")), r"doesn't know '\\\\b'"),
        (_words(pre_tokenizer=pre_tokenizers.Split(Regex(r"(?>a)"), "isolated")), r"in it"),
        (_words(pre_tokenizer=pre_tokenizers.Split(Regex(r"[a&&b]"), "isolated")), r"doesn't know '&'"),
    ],
)
def test_what_a_page_does_not_know_is_refused_by_name(tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe_tokenizer(tokenizer, SpecialTokens())
