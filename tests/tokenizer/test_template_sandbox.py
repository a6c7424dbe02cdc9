"""Chat templates give what `transformers` makes of them, and can't do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer, template_sandbox
from tests.oracle import needs_newer_transformers
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


_DOUBLED = "{%% set n = namespace(x=%s) %%}{%% for _ in range(%d) %%}{%% set n.x = %s %%}{%% endfor %%}"
_TREE = _DOUBLED % ("[1]", 60, "[n.x, n.x]")
_PAIRS = _DOUBLED % ("(1,)", 60, "(n.x, n.x)")
_TEXT = _DOUBLED % ("'abcdefghij'", 17, "n.x + n.x")
_ITEMS = _DOUBLED % ("[1]", 20, "n.x + n.x")
_OFTEN = "{% for a in range(99999) %}{% for b in range(99) %}"
_END = "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        # The width that a number asks for.
        "{{ '%100000000d' % 1 }}",
        "{{ '%(a(b))100000000d' % {'a(b)': 1} }}",
        "{{ '%.100000000f' | format(1.5) }}",
        "{{ '%*d' % (100000000, 1) }}",
        "{{ '{:100000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 100000000) }}",
        "{{ ('{:100000000}' | safe).format(1) }}",
        "{{ 'x' | center(100000000) }}",
        "{{ 'x'.ljust(100000000) }}",
        "{{ '1'.zfill(100000000) }}",
        "{{ 'x' | indent(100000000, true) }}",
        "{{ ('\n' * 1000000) | indent('y' * 1000) }}",
        "{{ [1] | tojson(indent=100000000) }}",
        "{{ ([1] * 1000000) | tojson(separators=('y' * 1000, ':')) }}",
        "{{ [1] | batch(100000000, 0) | list | length }}",
        "{{ [1] | slice(100000000, 0) | list | length }}",
        "{{ 1.5 | round(100000, 'floor') }}",
        # Arithmetic with long integers.
        "{{ 2 ** 100000000 }}",
        "{{ (2 ** 16000) * (2 ** 16000) // 3 }}",
        "{{ ('f' * 10000000) | int(base=16) // 3 }}",
        # Values that are inside another more often than there is memory for.
        *(_TREE + use for use in ("{{ n.x }}", "{{ n.x | tojson }}", "{% if n.x == [n.x] %}{% endif %}", "{{ n }}")),
        *(
            _TREE + use
            for use in ("{{ '%s' % n.x }}", "{{ '{!r}'.format(n.x) }}", "{{ [n.x] | sort }}", "{{ n.x ~ 1 }}")
        ),
        *(_PAIRS + use for use in ("{{ {n.x: 1} }}", "{{ {}[n.x] }}", "{{ {}.get(n.x) }}", "{{ n.x in {} }}")),
        # What takes long for what it makes.
        _TEXT + _OFTEN + "{% if n.x ~ 'a' < n.x ~ 'b' %}{% endif %}" + _END,
        _TEXT + _OFTEN + "{% if 'zz' in n.x %}{% endif %}" + _END,
        _TEXT + _OFTEN + "{% if n.x is upper %}{% endif %}" + _END,
        _TEXT + _OFTEN + "{% set y = n.x[1:] %}" + _END,
        _TEXT + _OFTEN + "{% set y = n.x.split('a') %}" + _END,
        _ITEMS + _OFTEN + "{% set y = n.x[1:] %}" + _END,
        _ITEMS + "{{ n.x | map('string') | map('upper') | reject('string') | list }}",
        "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000) }}",
        "{{ ('a' * 1000000).rfind('b' + 'a' * 100000) }}",
        "{{ (['a' * 1000000] * 1000) | join | length }}",
        "{% for _ in range(99999) %}" + "{% set x = 1 %}" * 2000 + "{% endfor %}",
        "{% for _ in range(99999) %}" + "x" * 40000 + "{% endfor %}",
        "{% for a in [[[[]] * 999] * 999] * 999 recursive %}{{ loop(a) }}{% endfor %}",
        pytest.param(
            "".join(f"{{% block b{i} %}}{2 * f'{{{{ self.b{i + 1}() }}}}'}{{% endblock %}}" for i in range(40))
            + "{% block b40 %}{% endblock %}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_chat_templates_pay_before_anything_is_done(template: str):
    with pytest.raises(UserError, match="it takes too long, or makes too much text"):
        template_sandbox.render(template, MESSAGES, False, {})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a'.translate({97: 'b' * 100000}) }}", "calls 'translate' of a str, which is not offered"),
        ("{{ '{a}'.format_map({'a': 1}) }}", "'format_map', which is not offered"),
        ("{{ 'a ' | wordwrap(1) }}", "No filter named 'wordwrap'"),
        ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "'autoescape' is not offered"),
        ("x" * 60_000, "more than 50,000 characters"),
        (_DOUBLED % ("(1,)", 9999, "(n.x,)") + "{{ {n.x: 1} }}", "nests values more than 100 levels deep"),
        ("{{ raise_exception('x' * 100000) }}", r"\(99,\d+ characters\)"),
    ],
)
def test_what_is_not_offered_to_chat_templates(template: str, message: str):
    with pytest.raises(UserError, match=message):
        template_sandbox.render(template, MESSAGES, False, {})


def test_a_long_conversation_equals_transformers(tmp_path: Path):
    template = (
        "{%- set ns = namespace(last=0, roles=[]) %}{%- for m in messages[::-1] %}"
        "{%- if m.role == 'user' and not (m.content.startswith('<r>') and m.content.endswith('</r>')) %}"
        "{%- set ns.last = loop.index0 %}{%- set ns.roles = ns.roles + [m.role] %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}{%- set text = m.content if m.content is string else '' %}"
        "{%- if '</think>' in text %}{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{{- '<|' + m.role ~ '|>\n' + text | trim | replace('x', 'y') }}{{ '%03d' % loop.index0 }}"
        "{{- '{:>4}'.format(loop.index) }}{%- if loop.index0 > ns.last or loop.last %}{{ m | tojson(indent=2) }}"
        "{% endif %}"
        "{%- if messages[loop.index0 - 1].role in ['user', 'tool'] and loop.index < messages | length %}!{% endif %}"
        "{{- m.content[:5] | upper ~ (m.content | e)[-3:] }}{%- endfor %}"
        "{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('+') | length }}"
        "{{- ns.roles | unique | list }}{{ {'b': 1, 'a': [2]} | dictsort }}{{ [3, 1] | sort | first }}"
        "{{ 1.25 | round(1) }}"
    )
    llama_like(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    words = "<think>\nsome \u00e9 thoughts</think>\n\n" + "and <b>500</b> letters of an answer " * 18
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} {words}"} for i in range(2000)]
    expected = automatic(tmp_path).apply_chat_template(messages, tokenize=False)
    assert Tokenizer.load(tmp_path).chat(messages, add_generation_prompt=False) == expected
    assert len(expected) > 10**6


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


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@needs_newer_transformers
def test_tools_and_messages_without_content_equal_transformers(tmp_path: Path):
    template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
        "{% for m in messages %}{{ m.role }}{{ m.keys() | list }}{{ m.content }}{% endfor %}"
    )
    llama_like(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    messages = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": None}]
    for tools in (None, TOOLS):
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False)
        assert ours.chat(messages, False, tools) == expected


@pytest.mark.parametrize(
    ("template", "text", "marked"),
    [
        ("a{% generation %}b{{ 1 }}{% endgeneration %}c{% generation %}d{% endgeneration %}", "ab1cd", ["b1", "d"]),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %};{% endfor %}", None, None),
        # A block has a scope of its own.
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21", ["2"]),
        # Where it is written as something else, it has no place in the text.
        ("aa{% macro f() %}{% generation %}b{% endgeneration %}{% endmacro %}{{ f() | upper }}", "aaB", []),
        ("{% if false %}{% generation %}b{% endgeneration %}{% endif %}a", "a", []),
    ],
)
def test_what_a_template_marks_is_found_in_its_text(
    tmp_path: Path, template: str, text: str | None, marked: list[str] | None
):
    llama_like(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    rendered, spans = ours.chat_spans(MESSAGES)
    assert rendered == ours.chat(MESSAGES, False) == theirs.apply_chat_template(MESSAGES, tokenize=False)
    assert text is None or rendered == text
    expected = [message["role"] for message in MESSAGES] if marked is None else marked
    assert [rendered[begin:end] for begin, end in spans] == expected


@pytest.mark.parametrize(
    "template",
    [
        _DOUBLED % ("'abcdefghij'", 17, "n.x + n.x") + _OFTEN + "{% generation %}{{ n.x }}{% endgeneration %}" + _END,
        "{% macro f(n) %}{% generation %}{{ f(n + 1) }}{{ f(n + 1) }}{% endgeneration %}{% endmacro %}{{ f(0) }}",
        "{% generation %}{{ caller.__globals__ }}{% endgeneration %}",
        "{% generation %}{{ self._mark }}{{ self.environment.extensions.x }}{% endgeneration %}",
    ],
)
def test_what_a_template_marks_is_paid_for_and_fenced_in(template: str):
    with pytest.raises(UserError, match="refuses these messages"):
        template_sandbox.render(template, MESSAGES, False, {})
    # The next rendering is none the wiser.
    assert template_sandbox.render("{% generation %}a{% endgeneration %}", MESSAGES, False, {}) == ("a", [(0, 1)])
