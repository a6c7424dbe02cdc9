"""Chat templates of the usual kinds, and small tokenizers that know their special tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.library import byte_words
from tests.tokenizer.hugging_face import CORPUS

_CHATML_TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
_CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CHATML = "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT
_HEADER = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"

CHATML = _CHATML
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ " + _HEADER + " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2_5 = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are Qwen, a helpful assistant.' }}
{%- else %}
    {{- '<|im_start|>system\\n' + messages[0].content }}
{%- endif %}
{%- if tools %}
    {{- '\\n\\n# Tools\\n' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
    {%- if m.role == 'assistant' or m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role }}
        {%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- set thought = '' %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content + '\\n\\n', messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MARKED_CHATML = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}" + _CHATML_TURN + "{% endif %}"
    "{% endfor %}" + _CHATML_PROMPT
)
MARKED_LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ " + _HEADER + " }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "smollm2": (SMOLLM2, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "qwen2.5": (QWEN2_5, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "mistral": (MISTRAL, "</s>"),
    "phi3": (PHI3, "<|end|>"),
}
"""Templates, each with the token that ends an answer."""

MARKED = {"chatml": (MARKED_CHATML, "<|im_end|>"), "llama3": (MARKED_LLAMA3, "<|eot_id|>")}
"""Those that say which text is the assistant's."""

SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
]
KINDS = ("byte_bpe", "llama3", "sentencepiece", "metaspace")


_LINES = [line for text in CORPUS for line in text.splitlines(keepends=True)] + ["\n\n", "\n\n\n", " \n"] * 50


@cache
def _trained(kind: str) -> str:
    """A tokenizer.json, with the tokens of SPECIAL as the first ones."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet: list[str] = []
    if kind in ("byte_bpe", "llama3"):
        # GPT-2's words divide line ends before a word, those of Llama 3 and Qwen keep them together.
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = byte_words() if kind == "llama3" else gpt2
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        # As LLaMA's and Mistral's: a space is put before each text between special tokens.
        if kind == "metaspace":
            # Newer ones do so before the whole text only.
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    backend.train_from_iterator(_LINES, trainer)
    pipeline = json.loads(backend.to_str())
    if kind in ("sentencepiece", "metaspace"):
        vocabulary = pipeline["model"]["vocab"]
        pipeline["model"]["byte_fallback"] = True
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return json.dumps(pipeline)


def tokenizer_of(template: str | None, end: str, kind: str = "byte_bpe", eos: str | None = None) -> Tokenizer:
    """A tokenizer that puts ``<s>`` before a text. What ends an answer is eos and pad, unless `eos` is given."""
    backend = tokenizers.Tokenizer.from_str(_trained(kind))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": eos or end,
        "pad_token": eos or end,
        "unk_token": "<unk>",
    }
    return Tokenizer(backend, {**config, "chat_template": template} if template else config)


def saved(tokenizer: Tokenizer, directory: Path) -> Path:
    """The directory that a tokenizer was saved in."""
    tokenizer.save(directory)
    return directory
