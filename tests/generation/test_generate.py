"""Texts in and out: prompts of any lengths, streams that say the same, special tokens where they belong."""

import inspect
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from anyformer.config import SpecialTokens
from anyformer.errors import UserError
from anyformer.generation import GenerationConfig, generate, generate_ids, generate_stream
from anyformer.generation.generate import generate_hypotheses
from anyformer.generation.prompt import encode_prompt, make_prompt, pad
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.generation.models import BOTH, build, config

TEXT = ["the cat sat on the mat, the dog ran to the café", "naïve cats – and dogs – eat the fish 日本語"]
PROMPTS = ["the cat", "dogs eat the fish and the", "a"]


def model_for(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Transformer:
    tokens = SpecialTokens(eos=() if tokenizer.eos is None else (tokenizer.eos,), pad=tokenizer.pad, decoder_start=0)
    return build(config(vocab_size=tokenizer.vocab_size, max_length=128, special_tokens=tokens, **changes), seed)


@pytest.fixture(scope="module", params=["char", "bpe:280", "unigram:80"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXT, request.param, special="seq2seq" if "unigram" in request.param else "causal")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_together_alone_and_streamed(tokenizer: Tokenizer, seed: int, temperature: float) -> None:
    model = model_for(tokenizer, seed)
    settings: dict[str, Any] = {"max_new_tokens": 16, "temperature": temperature, "seed": 3}
    alone = [generate(model, tokenizer, prompt, **settings)[0] for prompt in PROMPTS]
    if temperature == 0.0:
        assert generate(model, tokenizer, PROMPTS, **settings) == alone
    for prompt, text in zip(PROMPTS, alone, strict=True):
        pieces = list(generate_stream(model, tokenizer, prompt, **settings))
        assert "".join(pieces) == text
        assert all(pieces)


def test_prompt_and_answer_read_on(tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer)
    for prompt in PROMPTS:
        row = encode_prompt(model, tokenizer, prompt)
        said = generate_ids(model, torch.tensor([row]), max_new_tokens=12, stop_at_eos=False)[0].tolist()
        whole = tokenizer.decode([*row, *said])
        assert prompt + generate(model, tokenizer, prompt, max_new_tokens=12, stop_at_eos=False)[0] == whole


def test_a_pipeline_that_cleans_up() -> None:
    tokenizer = Tokenizer.train(TEXT, "wordpiece:90", special="masked")
    tokenizer.cleans_up = True
    model = model_for(tokenizer)
    for prompt in PROMPTS:
        text = generate(model, tokenizer, prompt, max_new_tokens=16)[0]
        assert "".join(generate_stream(model, tokenizer, prompt, max_new_tokens=16)) == text


@pytest.mark.parametrize("seed", range(3))
def test_encoder_decoders_read_the_whole_source(seed: int) -> None:
    tokenizer = Tokenizer.train(TEXT, "unigram:80", special="seq2seq")
    model = model_for(tokenizer, seed, **BOTH)
    said = generate(model, tokenizer, PROMPTS, max_new_tokens=16)
    for prompt, text in zip(PROMPTS, said, strict=True):
        ids = tokenizer.encode(prompt)
        assert ids[-1] == tokenizer.eos
        new = generate_ids(model, torch.tensor([ids]), max_new_tokens=16)[0].tolist()
        assert text == tokenizer.decode(new[: new.index(tokenizer.eos)] if tokenizer.eos in new else new)
        assert "".join(generate_stream(model, tokenizer, prompt, max_new_tokens=16)) == text


@pytest.mark.parametrize("template", ["$A </s>", "<pad> $A </s>", "<pad> $A", "<pad> $A </s> </s>"])
def test_no_prompt_ends_with_an_end(template: str) -> None:
    tokenizer = Tokenizer.train(TEXT, "unigram:80", special="seq2seq")
    tokenizer.backend.post_processor = TemplateProcessing(single=template, special_tokens=[("</s>", 1), ("<pad>", 0)])
    model = model_for(tokenizer)
    plain = tokenizer.encode("the cat", special=False)
    assert encode_prompt(model, tokenizer, "the cat") == [0] * template.startswith("<pad>") + plain
    # One that the user wrote is the user's.
    assert encode_prompt(model, tokenizer, "the cat</s>")[-2:] == [plain[-1], 1]


def test_an_empty_prompt() -> None:
    tokenizer = Tokenizer.train(TEXT, "bpe:280")
    model = model_for(tokenizer)
    for function in (generate, generate_stream):
        with pytest.raises(UserError, match="prompt is empty"):
            function(model, tokenizer, "")
    model.config = model.config.replace(special_tokens={"bos": tokenizer.eos})
    assert encode_prompt(model, tokenizer, "") == [tokenizer.eos]
    assert generate(model, tokenizer, "", max_new_tokens=3) == generate(model, tokenizer, [""], max_new_tokens=3)


def test_text_ends_at_the_end() -> None:
    tokenizer = Tokenizer.train(TEXT, "char")
    model = model_for(tokenizer)
    model.config = model.config.replace(special_tokens=SpecialTokens())
    free = generate(model, tokenizer, "the cat", max_new_tokens=12)[0]
    end = next(c for c in free if free.index(c) >= 2)
    model.config = model.config.replace(special_tokens={"eos": tokenizer.encode(end)})
    assert generate(model, tokenizer, ["the cat"], max_new_tokens=12) == [free[: free.index(end)]]
    assert "".join(generate_stream(model, tokenizer, "the cat", max_new_tokens=12)) == free[: free.index(end)]
    assert generate(model, tokenizer, "the cat", max_new_tokens=12, stop_at_eos=False) == [free]


def test_mistakes() -> None:
    tokenizer = Tokenizer.train(TEXT, "char")
    model = model_for(tokenizer)
    assert generate(model, tokenizer, []) == []
    with pytest.raises(UserError, match="without a tokenizer"):
        generate(model, None, "the cat")
    with pytest.raises(UserError, match="context of 128"):
        generate(model, tokenizer, ["the", "the cat " * 20])
    small = build(config(vocab_size=5))
    with pytest.raises(UserError, match="vocabulary of 5"):
        generate(small, tokenizer, "the cat")
    with pytest.raises(UserError, match="`embed`"):
        generate(model_for(tokenizer, encoder_layers=1, decoder_layers=0), tokenizer, "the cat")


def test_a_stream_ends_before_a_stop_string(tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer)
    whole = "".join(generate_stream(model, tokenizer, "the cat", max_new_tokens=20))
    stop = whole[3:5]
    assert stop
    said = "".join(generate_stream(model, tokenizer, "the cat", max_new_tokens=20, stop=stop))
    assert said == whole.partition(stop)[0]


def test_a_batch_is_penalized_and_stopped_like_a_stream(tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer)
    config = GenerationConfig(max_new_tokens=20, frequency_penalty=0.7, repetition_penalty=1.2)
    free = generate(model, tokenizer, PROMPTS, config)
    assert free != generate(model, tokenizer, PROMPTS, max_new_tokens=20)
    stop = [part for part in (free[0][2:4], free[1][5:6]) if part]
    said = generate(model, tokenizer, PROMPTS, config, stop=stop)
    assert said != free
    for prompt, text in zip(PROMPTS, said, strict=True):
        streamed = generate_stream(model, tokenizer, prompt, config, stop=stop)
        assert "".join(streamed) == text
    with pytest.raises(UserError, match="without beams"):
        generate(model, tokenizer, PROMPTS, config, beams=2)


def test_what_is_no_prompt_is_one_sentence(tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer)
    frame = pytest.importorskip("pandas").DataFrame({"review": ["a cat"]})
    for prompts, message in (
        (frame, r"A DataFrame has columns, .*\['review'\]"),
        ([{"role": "user", "content": "hi"}], "`anyformer.generation.Conversation` answers those"),
        ([None], "Text 1 of 1 is no text: it is of type NoneType"),
    ):
        given: Any = prompts
        with pytest.raises(UserError, match=message):
            inspect.unwrap(generate_hypotheses)(model, tokenizer, given, GenerationConfig())
    given = {"text": "a cat"}
    with pytest.raises(UserError, match=r"Prompt 1 of 1 is no text: it is of type dict: .*row\['text'\]"):
        inspect.unwrap(generate_stream)(model, tokenizer, given)
    assert generate(model, tokenizer, frame["review"], max_new_tokens=3) == generate(
        model, tokenizer, ["a cat"], max_new_tokens=3
    )


@pytest.mark.parametrize("ids", [[[1, 2]], torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]])], ids=str)
def test_ids_are_a_tensor_of_whole_numbers(ids: Any) -> None:
    with pytest.raises(UserError, match=r"ids are a tensor of whole numbers \[batch, time\], such as .*, not "):
        inspect.unwrap(make_prompt)(build(config()), ids)
    words: Any = [["a", "b"]]
    with pytest.raises(UserError, match="Token ids are whole numbers: give a text as a string"):
        inspect.unwrap(pad)(words, 0)
