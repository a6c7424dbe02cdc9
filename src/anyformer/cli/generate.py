"""`anyformer generate MODEL "text"`: continue a prompt, or rewrite a source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from anyformer.cli.loading import LoadOptions
from anyformer.cli.options import Positional, generation_options, parse
from anyformer.errors import UserError

if TYPE_CHECKING:
    from anyformer.generation.config import GenerationOptions
    from anyformer.generation.speculative_decoding import Draft

_FINER = {
    "min_p": None,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
    "stop": (),
    "draft": None,
    "samples": 1,
    "logprobs": None,
}
"""Options for texts without beams, and what leaves it as it is."""
_SINGLE = {"n_best": 1, "samples": 1, "logprobs": None}
"""Options for a single prompt."""
_NOT_OF_THE_TEXT = ("model", "prompt", "file", "out", "field", "loading", "device", "allow_pickle", *_SINGLE)
"""Options that change nothing of what is written to a file."""

_SECTIONS: dict[str, tuple[str, ...]] = {
    "prompts from a file": ("file", "out", "field", "batch_size"),
    "sampling": (
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("logit_bias", "samples", "seed"),
    ),
    "beam search": ("beams", "length_penalty", "early_stopping", "n_best"),
}
"""Fields of GenerateOptions by section of the help."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt, token by token; an encoder-decoder rewrites it instead.

    Examples:
        anyformer generate runs/llama-nano-1 "def " --temperature 0.8 --seed 1
        anyformer generate Helsinki-NLP/opus-mt-en-de "The cat sleeps."
        anyformer generate openai-community/gpt2 --file prompts.txt --out answers.jsonl
    """

    model: Positional[str]
    """A model directory, a run directory, a GGUF file, or a hub id."""
    prompt: Positional[str] = ""
    """The text to go on from; for an encoder-decoder the source."""
    file: Path | None = None
    """Answer all prompts of this file instead: one a line, or a field of a .jsonl, .csv, .tsv or .parquet."""
    out: Path | None = None
    """Where the answers to --file go, one JSON object a line. Started again, the command goes on with what is there."""
    field: str = "prompt"
    """The field of --file's records that holds the prompt."""
    batch_size: int = 8
    """Prompts of --file that are answered at a time."""
    max_new_tokens: int | None = None
    """Stop after this many tokens, sooner at end-of-text (default: 200, or as many as the context has room for)."""
    temperature: Annotated[float, "T"] = 0.0
    """0: always the likeliest token; above: draw, the bolder the higher (default: 0)."""
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
    logit_bias: Annotated[tuple[str, ...], "TOKEN:BIAS"] = ()
    """Add a bias to the logit of the token with this id, such as 11:-100."""
    stop: Annotated[tuple[str, ...], "STRING"] = ()
    """Strings that end the text, and are no part of it."""
    samples: int = 1
    """Draw so many texts, each by itself; it wants a --temperature."""
    logprobs: int | None = None
    """Show how likely each new token was, and so many of the likeliest in its place."""
    draft: str | None = None
    """Who guesses tokens ahead, so that the model needs fewer steps for the same text: "prompt" looks for what followed
    the same words before; or a smaller model of the same vocabulary."""
    seed: int | None = None
    """Makes drawing repeatable."""
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
    loading: LoadOptions = LoadOptions()


def run(argv: list[str]) -> int:
    """Write the continuation as it comes; what is searched for with beams comes when the search is over."""
    options = parse(GenerateOptions, argv, "generate", _SECTIONS)

    from anyformer.generation import GenerationConfig, generate_n_best, generate_samples, generate_stream

    _check_flags(options)
    model, tokenizer = options.loading.load(options.model)
    given = _given(options)
    search = options.n_best != 1 or GenerationConfig.for_model(model, **given).beams > 1
    if search and any(getattr(options, name) != usual for name, usual in _FINER.items()):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in _FINER)
        raise UserError(f"{names} are for texts without beams: leave them out, or --beams 1.")
    draft: Draft | None = None
    if options.draft is not None:
        draft = (
            "prompt" if options.draft == "prompt" else replace(options.loading, quantize=None).load(options.draft)[0]
        )
    if options.file is not None and options.out is not None:
        from anyformer.cli.generate_file import answer_file
        from anyformer.generation.batch_job import read_prompts

        flags = {**asdict(options), **asdict(options.loading)}
        settings = {name: value for name, value in flags.items() if name not in _NOT_OF_THE_TEXT}
        settings |= {"stop": list(options.stop), "logit_bias": list(options.logit_bias)}
        prompts = read_prompts(options.file, options.field)
        return answer_file(model, tokenizer, prompts, options.out, settings, draft, **given)
    before = options.prompt if model.config.is_decoder_only else ""
    if search:
        found = generate_n_best(model, tokenizer, options.prompt, options.n_best, **given)[0]
        for best in found:
            _say(f"{best.score:.4f}  " if len(found) > 1 else "")
            _say(f"{before}{best.text}\n")
    elif options.logprobs is not None:
        from anyformer.cli.logprobs import show_logprobs

        show_logprobs(model, tokenizer, options.prompt, options.logprobs, **given)
    elif options.samples != 1:
        samples = generate_samples(model, tokenizer, options.prompt, draft=draft, **given)[0]
        for number, text in enumerate(samples, start=1):
            _say(f"[{number}] {before}{text}\n")
    else:
        pieces = generate_stream(model, tokenizer, options.prompt, draft=draft, **given)
        _say(before)
        for piece in pieces:
            _say(piece)
        _say("\n")
    return 0


def _given(options: GenerateOptions) -> GenerationOptions:
    given = generation_options(options)
    given["max_new_tokens"] = options.max_new_tokens
    given["logit_bias"] = _biases(options.logit_bias)
    if options.early_stopping is not None:
        given["early_stopping"] = "never" if options.early_stopping == "never" else options.early_stopping == "true"
    return given


def _check_flags(options: GenerateOptions) -> None:
    """Raise UserError for flags that contradict each other."""
    if (options.file is None) != (options.out is None):
        raise UserError("--file and --out belong together: --file prompts.txt --out answers.jsonl.")
    if options.file is not None:
        if options.prompt:
            raise UserError("Give a prompt or a --file of prompts, not both.")
        for name, usual in _SINGLE.items():
            if getattr(options, name) != usual:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is for a single prompt: a --file gets one answer a prompt.")
        if options.batch_size < 1:
            raise UserError(f"--batch-size is a number of prompts, at least 1, not {options.batch_size}.")
    if options.samples > 1 and options.temperature == 0.0:
        raise UserError("--samples draws texts, and greedy ones would all be the same: add --temperature 0.8.")
    if options.n_best != 1 and options.temperature != 0.0:
        raise UserError("--n-best shows what a search for the likeliest texts found: leave out --temperature.")
    if options.logprobs is not None and (options.samples != 1 or options.draft is not None):
        raise UserError("--logprobs shows the tokens of one text: leave out --samples and --draft.")


def _biases(given: Sequence[str]) -> dict[int, float]:
    found: dict[int, float] = {}
    for item in given:
        token, _, bias = item.partition(":")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise UserError(f"--logit-bias {item!r} is no TOKEN:BIAS, such as 11:-100 or 198:2.5.") from None
    return found


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
