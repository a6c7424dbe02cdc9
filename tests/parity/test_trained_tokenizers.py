"""The tokenizer that each objective trains, beside its model, is what Hugging Face opens: class, roles and ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.config import SpecialTokens
from anyformer.data.objectives import SpanCorruption, decoder_start, objective
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

CORPUS = ["The quick brown fox, jumping over unbelievable dogs.\n\nAnd über-Größe 2024 isn't it? 🙂\n"] * 8
PAIRS = [
    ("bert-base", "masked", "wordpiece:200", "BertForMaskedLM"),
    ("distilbert-base", "masked", "wordpiece:200", "DistilBertForMaskedLM"),
    ("roberta-base", "masked", "bpe:300", "RobertaForMaskedLM"),
    ("t5-small", "span_corruption", "unigram:200", "T5ForConditionalGeneration"),
    ("t5-nano", "span_corruption", "bpe:400", "T5ForConditionalGeneration"),
    ("t5-nano", "span_corruption", "char", "T5ForConditionalGeneration"),
    ("mt5-small", "span_corruption", "unigram:200", "MT5ForConditionalGeneration"),
    ("bart-base", "span_corruption", "bpe:400", "BartForConditionalGeneration"),
    ("transformer-tiny", "seq2seq", "bpe:300", "MarianMTModel"),
    ("transformer-tiny", "seq2seq", "unigram:200", "MarianMTModel"),
    ("t5-nano", "seq2seq", "bpe:300", "T5ForConditionalGeneration"),
    ("gpt2-nano", "causal", "bpe:300", "GPT2LMHeadModel"),
]
ANYTHING = st.text(st.sampled_from(sorted({c for text in CORPUS for c in text})), max_size=40)


@pytest.mark.parametrize(("preset", "special", "spec", "architecture"), PAIRS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANYTHING)
def test_saved_beside_its_model(
    preset: str, special: str, spec: str, architecture: str, text: str, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    if not directory.exists():
        save(preset, special, spec, directory)
    opened = OPENED.get(directory)
    if opened is None:
        OPENED.clear()
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        config = transformers.AutoConfig.from_pretrained(directory)
        opened = OPENED[directory] = (Tokenizer.load(directory), theirs, config)
    ours, theirs, config = opened
    assert config.architectures == [architecture]
    for role in ("pad", "eos", "unk", "mask", "cls", "sep"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
    for name in ("pad_token_id", "eos_token_id"):
        assert getattr(config, name) == getattr(theirs, name)
    assert len(theirs) == ours.vocab_size <= config.vocab_size
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    if special == "span_corruption":
        made = objective(special, ours, tokens=af.preset(preset).special_tokens)
        assert isinstance(made, SpanCorruption)
        assert config.decoder_start_token_id == made.start
        assert theirs("a <extra_id_0> b <extra_id_1>")["input_ids"] == ours.encode("a <extra_id_0> b <extra_id_1>")
        assert theirs.convert_tokens_to_ids("<extra_id_0>") == made.sentinels[0] == len(theirs) - 1
        assert set(made.sentinels) <= set(theirs.all_special_ids)


@pytest.mark.parametrize("spec", ["bpe:287", "bpe:400", "unigram:120", "wordpiece:150", "bpe:4000"])
def test_sentinels_are_within_the_size(spec: str) -> None:
    size = int(spec.partition(":")[2])
    tokenizer = Tokenizer.train(CORPUS, spec, special="span_corruption")
    sentinels = min(100, size // 10)
    assert tokenizer.vocab_size <= size
    assert tokenizer.token(tokenizer.vocab_size - 1) == "<extra_id_0>"
    assert tokenizer.token(tokenizer.vocab_size - sentinels) == f"<extra_id_{sentinels - 1}>"
    assert tokenizer.id(f"<extra_id_{sentinels}>") is None
    assert [tokenizer.token(index) for index in range(3)] == ["<pad>", "</s>", "<unk>"]


def test_no_room_for_sentinels() -> None:
    with pytest.raises(UserError, match="of 286 is too small: it needs at least 287"):
        Tokenizer.train(CORPUS, "bpe:286", special="span_corruption")


OPENED: dict[Path, tuple[Tokenizer, Any, Any]] = {}


def save(preset: str, special: str, spec: str, directory: Path) -> None:
    """Train the tokenizer and save it beside a small model that fits."""
    tokenizer = Tokenizer.train(CORPUS, spec, special=special)
    config = af.preset(preset)
    start = decoder_start(config.special_tokens, tokenizer) if config.is_encoder_decoder else None
    padding = None if config.embedding.padding is None else tokenizer.pad
    small: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "d_model": 16, "max_length": 32}
    layers = {"encoder_layers": min(1, config.encoder_layers), "decoder_layers": min(1, config.decoder_layers)}
    config = config.replace(
        **small,
        **layers,
        attention={"heads": 2, "head_dim": None},
        feed_forward={"width": 16},
        embedding={"padding": padding},
        special_tokens=SpecialTokens(
            bos=tokenizer.bos,
            eos=() if tokenizer.eos is None else (tokenizer.eos,),
            pad=tokenizer.pad,
            decoder_start=start,
        ),
    )
    if config.position.skip_padding and padding is not None:
        config = config.replace(position={"offset": padding + 1})
    af.save(af.build(config), directory, tokenizer=tokenizer)
