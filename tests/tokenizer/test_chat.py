"""Chat templates give what `transformers` makes of them, and can't do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from tests.tokenizer.hugging_face import automatic, llama_like

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
