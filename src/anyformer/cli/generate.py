"""`anyformer generate MODEL "text"`: continue a prompt, or rewrite a source."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Unpack, cast

from anyformer.cli.options import AT_LEAST_1, ModelOptions, Positional, Text, parse
from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.schema import flag
from anyformer.terminal import message, write

if TYPE_CHECKING:
    from anyformer.generation.config import GenerationOptions
    from anyformer.generation.speculative_decoding import Draft
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling."""

    temperature: Annotated[float | None, "T"] = None
    """0: always the likeliest token; above: draw, the bolder the higher (default: 0; of a chat the model's own, or
    0.7)."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: Annotated[float | None, "P"] = None
    """Draw from the likeliest tokens that have this probability together."""
    min_p: Annotated[float | None, "P"] = None
    """Draw from tokens only that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: what prompt and text have already becomes less likely."""
    presence_penalty: float = 0.0
    """Above 0: what the new text has already becomes less likely."""
    frequency_penalty: float = 0.0
    """Above 0: the more often the new text has something, the less likely it becomes."""
    seed: int | None = None
    """Makes drawing repeatable."""


def generation_options(options: SamplingOptions) -> GenerationOptions:
    """The fields of `GenerationConfig` among flags, without those that are None, which were left out."""
    from anyformer.generation import GenerationConfig

    flags = {field.name: getattr(options, field.name, None) for field in fields(GenerationConfig)}
    return cast("GenerationOptions", {name: value for name, value in flags.items() if value is not None})


_NOT_WITH_BEAMS = (
    *("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("stop", "draft", "samples", "logprobs"),
)
_NOT_WITH_FILE = ("n_best", "samples", "logprobs")
_WITHOUT_EFFECT = ("model", "prompt", "file", "out", "field", "max_record_bytes", "device", "allow_pickle")
"""Options that change nothing of what is written to a file."""


@dataclass(frozen=True, kw_only=True)
class _FileOptions:
    """Prompts from a file."""

    file: Path | None = None
    """Answer all prompts of this file instead, - for standard input: one a line, or a field of a .jsonl, .csv, .tsv or
    .parquet."""
    out: Annotated[Path | None, "-o", "--output"] = None
    """Where the answers to --file go, one JSON object a line. Started again, the command goes on with what is there."""
    field: str = "prompt"
    """The field of --file's records that holds the prompt."""
    max_record_bytes: Annotated[int, "N", AT_LEAST_1] = RECORD_BYTES
    """Bytes that a record of --file may have, or a line."""
    batch_size: Annotated[int, "N", AT_LEAST_1] = 8
    """Prompts of --file that are answered at a time."""


@dataclass(frozen=True, kw_only=True)
class _BeamOptions:
    """Beam search."""

    beams: int | None = None
    """Search for the likeliest text with this many side by side; 1: greedy (default: as many as the model's own
    settings ask for, as translation models do, and 1 if tokens are drawn)."""
    length_penalty: float | None = None
    """0 favors short texts, 1 compares means a token, more favors long ones (default: the model's, or 1)."""
    early_stopping: Literal["true", "false", "never"] | None = None
    """Stop when as many texts have ended (true), when the rest look worse (false), or when they can't get better
    at any length (never) (default: the model's own, or false)."""
    n_best: int = 1
    """Show this many of the texts that the search found, each behind its score."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(_FileOptions, SamplingOptions, _BeamOptions, ModelOptions):
    """Continue a prompt, token by token; an encoder-decoder rewrites it instead.

    Examples:
        anyformer generate runs/llama-nano-1 "def " --temperature 0.8 --seed 1
        anyformer generate Helsinki-NLP/opus-mt-en-de "The cat sleeps."
        anyformer generate openai-community/gpt2 --file prompts.txt --out answers.jsonl
    """

    prompt: Positional[Text[str]] = ""
    """The text to go on from, - for standard input; for an encoder-decoder the source (default: the beginning of a
    text)."""
    max_new_tokens: int | None = None
    """Stop after this many tokens, sooner at end-of-text (default: 200, or as many as the context has room for)."""
    logit_bias: Annotated[tuple[str, ...], "TOKEN:BIAS"] = ()
    """Add a bias to the logit of the token with this id, such as 11:-100."""
    stop: Annotated[Text[tuple[str, ...]], "STRING"] = ()
    """Strings that end the text, and are no part of it."""
    samples: int = 1
    """Draw so many texts, each by itself; it wants a --temperature."""
    logprobs: int | None = None
    """Show how likely each new token was, and so many of the likeliest in its place."""
    draft: str | None = None
    """Guess tokens ahead, so that the model needs fewer steps for the same text: "prompt" looks for what followed the
    same words before; or name a smaller model of the same vocabulary."""


def run(argv: list[str]) -> int:
    """Write the continuation as it comes; that of a search with beams comes when the search is over."""
    options = parse(GenerateOptions, argv, "generate")

    from anyformer.data.materialize import STANDARD_INPUT
    from anyformer.generation import GenerationConfig, generate_n_best, generate_samples, generate_stream
    from anyformer.generation.prompt import beginning

    _check_flags(options)
    model, tokenizer = options.load_model()
    settings = generation_options(options)
    settings["max_new_tokens"] = options.max_new_tokens
    settings["logit_bias"] = _biases(options.logit_bias)
    if options.early_stopping is not None:
        settings["early_stopping"] = "never" if options.early_stopping == "never" else options.early_stopping == "true"
    searches = options.n_best != 1 or GenerationConfig.for_model(model, **settings).beams > 1
    if searches and _changed(options, _NOT_WITH_BEAMS):
        names = ", ".join(map(flag, _NOT_WITH_BEAMS))
        raise UserError(f"{names} are for texts without beams: leave them out, or --beams 1.")
    draft: Draft | None = None
    if options.draft is not None:
        plain = replace(options, quantize=None, adapter=())
        draft = "prompt" if options.draft == "prompt" else plain.load(options.draft)[0]
    if options.file is not None and options.out is not None:
        return _answer_file(model, tokenizer, options, options.file, options.out, draft, **settings)
    text = _standard_input() if options.prompt == STANDARD_INPUT else options.prompt
    start, prompt = beginning(model, tokenizer, text), text if model.config.is_decoder_only else ""
    prompts = start if isinstance(start, str) else [start]
    texts = list[str]()
    if searches:
        best = generate_n_best(model, tokenizer, prompts, options.n_best, **settings)[0]
        texts += [each.text for each in best]
        for each in best:
            write(f"{each.score:.4f}  " if len(best) > 1 else "", prompt, each.text, sep="", flush=True)
    elif options.logprobs is not None:
        texts.append(_show_logprobs(model, tokenizer, start, prompt, options.logprobs, **settings))
    elif options.samples != 1:
        texts += generate_samples(model, tokenizer, prompts, draft=draft, **settings)[0]
        for number, text in enumerate(texts, start=1):
            write(f"[{number}] {prompt}{text}", flush=True)
    else:
        stream = generate_stream(model, tokenizer, start, draft=draft, **settings)
        write(prompt, end="", flush=True)
        for text in stream:
            write(text, end="", flush=True)
            texts.append(text)
        write()
    if not options.stop and not any(texts):
        has_template = tokenizer is not None and tokenizer.chat_template is not None
        chat = f"anyformer chat {shlex.quote(options.model)}"
        advice = f" It has a chat template, so it expects a conversation: {chat}" if has_template else ""
        message(f"The model ended the text at once.{advice}")
    return 0


def _standard_input() -> str:
    """The text on standard input, without the line end that a shell puts behind it."""
    if sys.stdin.isatty():
        raise UserError("The prompt - reads standard input, and that is a terminal: pipe a text into the command.")
    return sys.stdin.read().removesuffix("\n")


def _answer_file(
    model: Transformer,
    tokenizer: Tokenizer | None,
    options: GenerateOptions,
    file: Path,
    out: Path,
    draft: Draft | None,
    **settings: Unpack[GenerationOptions],
) -> int:
    """Answer the prompts of a file, with a progress bar."""
    from rich.progress import MofNCompleteColumn

    from anyformer.console import progress_bar
    from anyformer.generation.batch_job import answer_prompts, read_prompts

    prompts = read_prompts(file, options.field, options.max_record_bytes)
    left_out = (*_WITHOUT_EFFECT, *_NOT_WITH_FILE)
    record = {name: value for name, value in asdict(options).items() if name not in left_out}
    record |= {"stop": list(options.stop), "logit_bias": list(options.logit_bias)}
    if adapters := list(record.pop("adapter")):  # without any, a job that an earlier version began goes on
        record["adapter"] = adapters
    record["temperature"] = options.temperature or 0.0
    bar = progress_bar(MofNCompleteColumn())
    task = bar.add_task("generating", total=len(prompts))
    counts: list[int] = []

    def progress(count: int) -> None:
        counts.append(count)
        bar.update(task, completed=count)

    try:
        with bar:
            answer_prompts(model, tokenizer, prompts, out, record, progress=progress, draft=draft, **settings)
    except KeyboardInterrupt:
        if counts:
            message(f"{counts[-1]} of {len(prompts)} prompts are answered: the same command goes on from there.")
        raise
    already = f" ({counts[0]} of them were there already)" if counts[0] else ""
    write(f"answers    {out}: {len(prompts)}{already}")
    return 0


def _show_logprobs(
    model: Transformer,
    tokenizer: Tokenizer | None,
    start: str | list[int],
    prompt: str,
    top: int,
    **settings: Unpack[GenerationOptions],
) -> str:
    """Generate a text and show its tokens, each with so many of the likeliest in its place; returns it."""
    import torch

    from anyformer.console import Console, table
    from anyformer.generation import BatchingEngine, encode_prompt
    from anyformer.generation.inference import require_tokenizer
    from anyformer.generation.prompt import make_prompt

    tokenizer = require_tokenizer(tokenizer, "give BatchingEngine.submit token ids")
    ids = encode_prompt(model, tokenizer, start) if isinstance(start, str) else start
    capacity = make_prompt(model, torch.tensor([ids]), None, settings.get("max_new_tokens")).capacity
    engine = BatchingEngine(model, tokenizer, slots=1, capacity=capacity)
    request = engine.submit(ids, logprobs=top, **settings)
    engine.run()

    def shown(token: int, logprob: float) -> tuple[str, str]:
        return repr(tokenizer.decode([token], skip_special=False)), f"{100 * math.exp(logprob):.1f}%"

    tokens = table("token", numbers=("probability",))
    if top:
        tokens.add_column("likeliest")
    for each in request.logprobs:
        likeliest = ["  ".join(" ".join(shown(*pair)) for pair in each.top.items())] if top else []
        tokens.add_row(*shown(each.token, each.logprob), *likeliest)
    write(f"{prompt}{request.text}\n")
    Console(soft_wrap=True).print(tokens)
    write(f"\nlog-probability {sum(each.logprob for each in request.logprobs):.3f} nats, {len(request.tokens)} tokens")
    return request.text


def _check_flags(options: GenerateOptions) -> None:
    """Raise UserError for flags that contradict each other."""
    if (options.file is None) != (options.out is None):
        raise UserError("--file and --out belong together: --file prompts.txt --out answers.jsonl.")
    if options.file is not None:
        if options.prompt:
            raise UserError("Give a prompt or a --file of prompts, not both.")
        for name in _changed(options, _NOT_WITH_FILE):
            raise UserError(f"{flag(name)} is for a single prompt: a --file gets one answer a prompt.")
    if options.samples > 1 and not options.temperature:
        raise UserError("--samples draws texts, and greedy ones would all be the same: add --temperature 0.8.")
    if options.n_best != 1 and options.temperature:
        raise UserError("--n-best shows what a search for the likeliest texts found: leave out --temperature.")
    if options.logprobs is not None and (options.samples != 1 or options.draft is not None):
        raise UserError("--logprobs shows the tokens of one text: leave out --samples and --draft.")


def _changed(options: GenerateOptions, names: Sequence[str]) -> list[str]:
    """Options that aren't at their defaults."""
    return [name for name in names if getattr(options, name) != getattr(GenerateOptions, name)]


def _biases(items: Sequence[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for item in items:
        token, _, bias = item.partition(":")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise UserError(f"--logit-bias {item!r} is no TOKEN:BIAS, such as 11:-100 or 198:2.5.") from None
    return biases
