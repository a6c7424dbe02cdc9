"""Every answer of a model drawn at random obeys its grammar."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.generation import BatchingEngine
from anyformer.serving.api.turn import Answer
from anyformer.serving.grammar import Grammars, json_rule, regex_rule
from anyformer.serving.token_text import TokenText
from anyformer.serving.tool_formats import FORMATS, Function, ToolFormat, Tools
from anyformer.serving.tool_parser import ChannelParser, ToolParser
from tests.serving.talking import HERMES, json_tokenizer, small_model

few = settings(max_examples=8, derandomize=True, database=None, deadline=None)

names = st.text('abcé "\\/{', min_size=1, max_size=4)
integers = st.tuples(st.integers(-20, 20), st.integers(0, 40)).map(
    lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
)
strings = st.one_of(
    st.integers(0, 5).map(lambda size: {"type": "string", "maxLength": size}),
    st.sampled_from(["^[a-c]{2,4}$", "^x-\\d{3}$", "^(yes|no)$"]).map(lambda each: {"type": "string", "pattern": each}),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda each: {"type": "string", "format": each}),
)  # fmt: skip
values = st.one_of(
    integers,
    strings,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}]),
    st.lists(st.one_of(names, st.integers(), st.none()), min_size=1, max_size=3).map(lambda each: {"enum": each}),
    st.one_of(names, st.floats(-9, 9)).map(lambda each: {"const": each}),
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def objects(properties: dict[str, Any], optional: set[int]) -> dict[str, Any]:
        required = [name for number, name in enumerate(properties) if number not in optional]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.one_of(
        st.builds(objects, st.dictionaries(names, inner, max_size=3), st.sets(st.integers(0, 2))),
        st.builds(
            lambda item, least, more: {"type": "array", "items": item, "minItems": least, "maxItems": least + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
    )


schemas = st.one_of(
    st.recursive(values, nested, max_leaves=5),
    st.recursive(values, nested, max_leaves=2).map(lambda each: {"$defs": {"it": each}, "$ref": "#/$defs/it"}),
)


@pytest.fixture(scope="module")
def writer() -> tuple[BatchingEngine, Grammars]:
    tokenizer = json_tokenizer()
    model = small_model(tokenizer)
    return BatchingEngine(model, tokenizer, 4, 1000), Grammars(model, tokenizer, [0])


@few
@given(schema=schemas, seed=st.integers(0, 9))
def test_drawn_schemas(writer: tuple[BatchingEngine, Grammars], schema: dict[str, Any], seed: int) -> None:
    engine, grammars = writer
    make = grammars.compile(f"text: {json_rule(schema)}", [5, 6])
    texts = [
        engine.submit([5, 6], constraint=make(), max_new_tokens=900, temperature=2.0, seed=seed + 10 * n)
        for n in range(3)
    ]
    engine.run()
    for text in texts:
        assert text.finish_reason == "stop", text.text
        checker = jsonschema.FormatChecker(["date", "ipv4", "uuid"])
        jsonschema.validate(json.loads(text.text), schema, format_checker=checker)


FIXED = ["[a-e]{3}", " a b", "é{2,5}-"]
"""Of what they match nothing can be followed by more."""


@pytest.mark.parametrize("spec", ["bpe:300", "unigram:90", "char"])
@pytest.mark.parametrize("regex", ["[a-e]{3}", "(the|cat) s[at]{1,9}x?", " a b", "é{2,5}-"])
def test_regexes(spec: str, regex: str) -> None:
    tokenizer = af.Tokenizer.train(["the cat sat on a mat, bcdexé-", "a b c d e é - x s t h"] * 4, spec)
    eos = [] if tokenizer.eos is None else [tokenizer.eos]
    model = small_model(tokenizer, eos=tuple(eos))
    engine, grammars = BatchingEngine(model, tokenizer, 4, 100), Grammars(model, tokenizer, eos)
    prompts = [eos or [1], tokenizer.encode("the cat"), [*tokenizer.encode("a b"), *eos]]
    texts = list[Any]()
    for seed, prompt in enumerate(prompts):
        make = grammars.compile(f"text: {regex_rule(regex)}", prompt)
        texts += [
            engine.submit(
                prompt,
                constraint=make(),
                max_new_tokens=60,
                temperature=2.0,
                seed=seed + 10 * n,
                logit_bias=dict.fromkeys(eos, 5.0),
            )
            for n in range(3)
        ]
    engine.run()
    for text in texts:
        if text.finish_reason == "stop":
            assert re.fullmatch(regex, text.text), text.text
    ends = "stop" if eos or regex in FIXED else None  # without an end-of-text, only what nothing can follow ends
    assert all(text.finish_reason == ends for text in texts if ends)


def test_what_others_ban_may_be_all_that_is_left(writer: tuple[BatchingEngine, Grammars]) -> None:
    engine, grammars = writer
    make = grammars.compile(f"text: {regex_rule('a')}")
    banned = {token: -float("inf") for token in range(engine.model.config.vocab_size)}
    text = engine.submit([5], constraint=make(), max_new_tokens=5, logit_bias=banned)
    engine.run()
    assert (text.text, text.finish_reason) == ("a", "stop")


def test_a_dead_end_is_one_text_s_own() -> None:
    tokenizer = af.Tokenizer.train(["abc"], "char")
    model = small_model(tokenizer, eos=())
    engine, grammars = BatchingEngine(model, tokenizer, 4, 100), Grammars(model, tokenizer, [])
    with pytest.raises(UserError, match="vocabulary"):
        grammars.compile(f"text: {json_rule({'type': 'object'})}")
    bad = engine.submit([3], constraint=grammars.compile(f"text: {regex_rule('ab?xyz')}")(), max_new_tokens=9)
    good = engine.submit([3], constraint=grammars.compile(f"text: {regex_rule('a{4}')}")(), max_new_tokens=9)
    with pytest.raises(UserError, match="grammar"):
        engine.run()
    engine.run()
    assert (bad.finish_reason, good.finish_reason, good.text) == ("error", "stop", "aaaa")


@pytest.mark.parametrize("spec", ["bpe:300", "unigram:90", "char"])
def test_bytes_are_those_of_the_text(spec: str) -> None:
    text = "the cat's naïve “mat” 日本 {1}\n\t x"
    tokenizer = af.Tokenizer.train([text] * 3, spec)
    exact = TokenText(tokenizer)
    ids = tokenizer.encode(text, special=False)
    assert exact.is_exact
    assert b"".join(map(exact.bytes, ids)).decode().removeprefix(" ") == tokenizer.decode(ids)
    if tokenizer.eos is not None:
        assert exact.split_special("a<|endoftext|>b")[1] == (tokenizer.token(tokenizer.eos), tokenizer.eos)


def test_a_text_that_loses_its_beginning() -> None:
    """The decoder of sentencepiece drops the space before the first word."""
    tokenizer = af.Tokenizer.train(["the cat sat a b"] * 4, "unigram:40")
    grammars = Grammars(small_model(tokenizer), tokenizer, [0])
    mask = grammars.compile(f"text: {regex_rule('[a-z ]+')}")()
    allowed = mask(torch.zeros(1, grammars.vocab_size), None).isfinite()[0]  # type: ignore[arg-type]
    text = TokenText(tokenizer)
    assert {text.bytes(token)[:1] for token in allowed.nonzero()[:, 0].tolist()} == {b" "}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.open}{form.call}"[:20])
def test_calls_that_are_enforced_are_read(form: ToolFormat, special: bool) -> None:
    marks = re.findall(r"<\|\w+\|>", form.call + form.between) if form.channels else [form.trigger]
    tokenizer = json_tokenizer(HERMES, *(marks if special else ()))
    model = small_model(tokenizer)
    engine, grammars = BatchingEngine(model, tokenizer, 4, 1000), Grammars(model, tokenizer, [0])
    properties: dict[str, Any] = {"a": {"enum": [1, "}"]}, "b": {"type": ["string", "null"], "enum": ["1 2", None]}}
    schema = {"properties": properties, "required": ["a"], "additionalProperties": False}
    functions = [Function(name=name, parameters=schema, strict=True) for name in ("add", "sub")]
    choices = [(True, None, True), (True, "sub", False), (False, None, True), (False, None, False)]
    for required, only, parallel in choices:
        tools = Tools(functions=functions, form=form, required=required, only=only, parallel=parallel)
        if form.channels and not required:
            with pytest.raises(UserError, match="reasoning"):
                tools.rules(grammars)
            continue
        make = grammars.compile(tools.rules(grammars), [5])
        written = form.call.replace("NAME", "add").replace("ARGUMENTS", '{"a": 2}')
        script = tokenizer.encode(f"{form.open}{written}{form.close}", special=False)
        bias = dict.fromkeys(script, 6.0) | {0: 9.0}
        texts = [
            engine.submit(
                [5],
                constraint=make(),
                max_new_tokens=90,
                temperature=1.0,
                seed=seed,
                logit_bias=bias,
                skip_special=not special,
            )
            for seed in range(2)
        ]
        engine.run()
        for text in texts:
            schemas = {"add": schema, "sub": schema}
            answer = Answer(parser=ChannelParser(schemas) if form.channels else ToolParser(form, schemas))
            answer.push(text.text, "stop")
            assert parallel or len(answer.calls) < 2
            assert only is None or {call.name for call in answer.calls} <= {only}
            if text.finish_reason == "stop":  # otherwise it may have been cut in a call
                assert not required or answer.calls
                assert not required or answer.text == ""
                for call in answer.calls:
                    arguments = json.loads(call.arguments)
                    assert arguments["a"] in (1, "}")
                    assert arguments.get("b") in ("1 2", None)
