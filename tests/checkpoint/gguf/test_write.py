"""Writing GGUF files: whole or not at all, bounded in memory, and nothing silently left out."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, processors

import anyformer as af
from anyformer.checkpoint.gguf import write
from anyformer.checkpoint.gguf.container import NAMED, Container
from anyformer.cli.main import main

gguf = pytest.importorskip("gguf")

TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France."] * 3


def tiny(preset: str, tokenizer: af.Tokenizer | None = None, **changes: Any) -> af.Transformer:
    torch.manual_seed(0)
    config = af.preset(preset)
    small: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size if tokenizer else 96,
        "d_model": 64,
        "encoder_layers": min(2, config.encoder_layers),
        "decoder_layers": min(2, config.decoder_layers),
        "attention": {"heads": 4, "head_dim": None, "kv_heads": None},
        "feed_forward": {"width": 96},
        "special_tokens": {"eos": (0,)},
    }
    return af.build(config.replace(**small).replace(**changes)).eval()


@pytest.fixture
def tokenizer() -> af.Tokenizer:
    made = af.Tokenizer.train(TEXT, "bpe:300")
    return af.Tokenizer(made.backend, {**made.config, "chat_template": "{{ messages[0].content }}"})


def test_a_file_holds_the_model_and_its_tokenizer(tokenizer: af.Tokenizer, tmp_path: Path) -> None:
    model = tiny("llama-nano", tokenizer)
    written = af.save_gguf(model, tmp_path / "model.gguf", tokenizer, kind="f32")
    assert written.architecture == "llama"
    assert written.notes == []
    assert written.size == (tmp_path / "model.gguf").stat().st_size
    again, words = af.load(tmp_path / "model.gguf")
    assert words is not None
    assert words.chat_template == tokenizer.chat_template
    assert words.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_type_is_nearly_the_model(kind: str, tmp_path: Path) -> None:
    model = tiny("llama-nano")
    written = af.save_gguf(model, tmp_path / "model.gguf", kind=kind)
    tensors = Container(tmp_path / "model.gguf").tensors
    assert tensors["blk.0.ffn_up.weight"].type.name == kind.upper()
    assert tensors["blk.0.attn_norm.weight"].type.name == "F32"
    assert tensors["token_embd.weight"].type.name == (kind.upper() if kind in ("f16", "bf16") else "Q8_0")
    assert sum(written.formats.values()) == len(tensors)
    again, _ = af.load(tmp_path / "model.gguf", dtype="float32")
    bits = {"f16": 11, "bf16": 8}.get(kind) or int(kind[1])
    for name, weight in model.state_dict().items():
        assert (weight - again.state_dict()[name]).abs().max() <= 2.0 ** (1 - bits) * weight.abs().max(), name


def test_rows_that_are_no_whole_number_of_blocks_fall_back(tmp_path: Path) -> None:
    written = af.save_gguf(tiny("llama-nano", feed_forward={"width": 50}), tmp_path / "model.gguf", kind="q4_0")
    assert Container(tmp_path / "model.gguf").tensors["blk.1.ffn_down.weight"].type.name == "F16"
    assert written.notes[-1] == (
        "2 tensors are stored as F16, because their rows are no whole number of blocks of 32 (such as "
        "blk.0.ffn_down.weight, of 50)."
    )


def test_quantizing_part_by_part_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(37, 64)
    whole = write._encode("w", tensor, NAMED["Q5_1"])
    monkeypatch.setattr(write, "_AT_ONCE", 5 * 64)
    assert np.array_equal(write._encode("w", tensor, NAMED["Q5_1"]), whole)
    assert np.array_equal(gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q5_1), whole)


def test_a_t5_gets_the_head_that_llama_cpp_multiplies_by(tmp_path: Path) -> None:
    model = tiny("t5-small")
    af.save_gguf(model, tmp_path / "model.gguf", kind="f32")
    head = Container(tmp_path / "model.gguf").blocks("output.weight").reshape(-1).view("<f4").reshape(96, 64)
    assert np.allclose(head, model.token_embedding.table.weight.detach().numpy() / 8)


def test_llama_3_gets_its_factors(tmp_path: Path) -> None:
    af.save_gguf(tiny("llama-3.2-1b"), tmp_path / "model.gguf")
    factors = Container(tmp_path / "model.gguf").blocks("rope_freqs.weight").reshape(-1).view("<f4")
    assert factors.shape == (8,)
    assert factors[0] == 1
    assert factors[-1] == 32


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("happens", "becomes"), [(_full, af.UserError), (_interrupted, KeyboardInterrupt)])
def test_a_file_is_whole_or_not_there(
    happens: Any, becomes: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    af.save_gguf(tiny("llama-nano"), path)
    before = path.read_bytes()
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", happens)
    with pytest.raises(becomes):
        af.save_gguf(tiny("llama-nano"), path, kind="f32")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(af.UserError, match=r"model\.gguf can't be written"):
        af.save_gguf(tiny("llama-nano"), tmp_path / "file" / "model.gguf")


def test_numbers_beyond_f16_are_refused(tmp_path: Path) -> None:
    model = tiny("llama-nano")
    torch.nn.init.constant_(model.token_embedding.table.weight, 1e5)
    with pytest.raises(af.UserError, match=r"token_embd\.weight has numbers too large for f16"):
        af.save_gguf(model, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the 2017 model": ("transformer-base", {}, "no architecture for a model of type"),
    "an activation": ("gpt2", {"feed_forward": {"activation": "relu"}}, "feed_forward.activation = 'relu'"),
    "a scale": ("gpt2", {"attention": {"scale": 1.0}}, "attention.scale = 1.0"),
    "narrow heads": (
        "llama-nano",
        {"attention": {"bias": True, "output_bias": False, "head_dim": 8}},
        "heads are as wide as the model",
    ),
    "biases": (
        "llama-nano",
        {"attention": {"qk_norm": "head", "bias": True, "output_bias": True}},
        "no biases in a qwen3",
    ),
    "another YaRN": (
        "llama-nano",
        {"position": {"scaling": af.config.RotaryScaling(kind="yarn", factor=4.0, original_length=64, beta_fast=4.0)}},
        "beta_fast 32 and beta_slow 1 whatever the file says, not with 4 and 1",
    ),
    "a long decoder": ("t5-small", {"encoder_layers": 1}, "whose decoder has more layers"),
    "distances": ("t5-small", {"position": {"max_distance": 64}}, "position.max_distance = 64"),
    "a way of pooling": ("bert-tiny", {"pooling": {"kind": "max"}}, "pooling.kind = 'max'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(case: str, tmp_path: Path) -> None:
    preset, changes, reason = REFUSED[case]
    with pytest.raises(af.UserError) as caught:
        af.save_gguf(tiny(preset, **changes), tmp_path / "model.gguf")
    assert reason in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_heads_of_encoders_are_left_out_and_said(tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(TEXT, "wordpiece:120", special="masked")
    written = af.save_gguf(tiny("bert-tiny", tokenizer), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert "llama.cpp has no masked-LM head, so it is left out" in written.notes[0]
    metadata = Container(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.token_type_count"] == 2
    assert metadata["tokenizer.ggml.tokens"][:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581."]
    model, again = af.load(tmp_path / "model.gguf")
    assert model.config.head.kind == "none"
    assert again is not None
    assert again.encode("The CAT") == tokenizer.encode("The CAT")


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_classifiers_are_left_out_and_said(kind: str, tmp_path: Path) -> None:
    pooler = "tanh" if kind == "classification" else None
    head = {"kind": kind, "labels": 5, "transform": None, "bias": "none", "pooler": pooler}
    written = af.save_gguf(tiny("bert-tiny", head=head), tmp_path / "model.gguf")
    assert "llama.cpp has no classifier, so it is left out" in written.notes[0]


def test_ends_of_a_text_that_have_no_room_are_said(tmp_path: Path) -> None:
    written = af.save_gguf(tiny("llama-nano", special_tokens={"eos": (1, 2, 3, 4)}), tmp_path / "model.gguf")
    assert written.notes[0] == "A GGUF file has 3 tokens that end a text, of the model's 4."
    assert af.load(tmp_path / "model.gguf")[0].config.special_tokens.eos == (1, 2, 3)


@pytest.mark.parametrize("special", ["span_corruption", "seq2seq"])
def test_line_ends_of_a_unigram_tokenizer_stay_tokens(special: str, tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(["the cat\n  sat on the mat\n"] * 5, "unigram:40", special=special)
    written = af.save_gguf(tiny("t5-small", tokenizer), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert any("NFKC" in note for note in written.notes)
    _, again = af.load(tmp_path / "model.gguf")
    assert again is not None
    for text in ("the mat\n  sat", "a  cat\n\n", "\nmat"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_a_window_becomes_the_length_of_the_context(tmp_path: Path) -> None:
    model = tiny("llama-nano", model_type="mistral", attention={"window": 16})
    written = af.save_gguf(model, tmp_path / "model.gguf")
    assert "for contexts of up to 16 tokens" in written.notes[0]
    assert Container(tmp_path / "model.gguf").metadata["llama.context_length"] == 16


def test_a_character_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(TEXT, "char")
    with pytest.raises(af.UserError, match="no character-level tokenizer"):
        af.save_gguf(tiny("llama-nano", tokenizer), tmp_path / "model.gguf", tokenizer=tokenizer)


def _sentence_bpe(merges: list[tuple[str, str]], first: str) -> af.Tokenizer:
    """SentencePiece's kind of BPE over a few letters."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc"]
    tokens += dict.fromkeys(left + right for left, right in merges)
    ids = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[("<s>", 1)])
    return af.Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})


@pytest.mark.parametrize(
    ("merges", "first", "reason"),
    [
        ([("a", "b"), ("b", "c"), ("ab", "c")], "<s>", "these merges are not in such an order"),
        (
            [("a", "b"), ("b", "c"), ("a", "bc"), ("a", "a"), ("ab", "c")],
            "<s>",
            "these merges are not in such an order",
        ),
        ([("a", "b")], "<s> <s>", "puts 2 tokens before a text"),
    ],
)
def test_sentence_pieces_that_scores_cannot_stand_for_are_refused(
    merges: list[tuple[str, str]], first: str, reason: str, tmp_path: Path
) -> None:
    tokenizer = _sentence_bpe(merges, first)
    with pytest.raises(af.UserError, match=reason):
        af.save_gguf(tiny("llama-nano", tokenizer), tmp_path / "model.gguf", tokenizer=tokenizer)


def test_sentence_pieces_get_scores_for_their_merges(tmp_path: Path) -> None:
    tokenizer = _sentence_bpe([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")], "<s>")
    af.save_gguf(tiny("llama-nano", tokenizer), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert Container(tmp_path / "model.gguf").metadata["tokenizer.ggml.scores"][-3:].tolist() == [0, -1, -2]
    _, again = af.load(tmp_path / "model.gguf")
    assert again is not None
    assert again.encode("abc é") == tokenizer.encode("abc é")


def test_a_tokenizer_of_another_model_is_refused(tokenizer: af.Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(af.UserError, match="they do not belong together"):
        af.save_gguf(tiny("llama-nano"), tmp_path / "model.gguf", tokenizer=tokenizer)


def test_convert_there_and_back(
    tokenizer: af.Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    af.save(tiny("llama-nano", tokenizer), "first", tokenizer=tokenizer)
    assert main(["convert", "first", "model.gguf", "--type", "f32"]) == 0
    assert "model.gguf: llama, tensors 20 F32" in capsys.readouterr().out
    assert main(["convert", "model.gguf", "second"]) == 0
    assert capsys.readouterr().out == "second: llama\n"
    first, second = (af.load(name)[0].state_dict() for name in ("first", "second"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["first", "second"], "one of the two names has to end in .gguf"),
        (["model.gguf", "second", "--type", "q8_0"], "no weights of type q8_0"),
        (["nowhere", "model.gguf"], "nowhere"),
        (["nowhere", "second"], "There is no nowhere here"),
    ],
)
def test_convert_says_what_is_wrong(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["convert", *arguments]) == 2
    assert said in capsys.readouterr().err
