"""`anyformer generate MODEL --file prompts.txt --out answers.jsonl`: the job, with its bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anyformer.generation.files import Job, answer_all, check_prompts, fingerprint, open_answers, read_prompts
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.writing import require_writing
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_USUAL = 200


def answer_file(
    model: Transformer,
    tokenizer: Tokenizer | None,
    file: Path,
    out: Path,
    field: str,
    settings: Mapping[str, Any],
    write: Callable[[Sequence[str], int, int], Sequence[str]],
) -> int:
    """Answer the prompts of a file, or those that an earlier start has left; returns the exit status.

    Args:
        model, tokenizer: What answers.
        file: The prompts, see `read_prompts`.
        out: Where the answers go.
        field: What holds the prompt of a record.
        settings: What the answers depend on, by name, with `batch_size` and `max_new_tokens` (None: 200, or half of the
            context where that is less).
        write: The answers of prompts, of which the first has this index, of at most so many tokens.
    """
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_writing(model)
    context, batch_size = model.config.context_length, settings["batch_size"]
    new = settings["max_new_tokens"]
    if new is None:
        new = _USUAL if context is None else max(1, min(_USUAL, context // 2))
    prompts = read_prompts(file, field)
    check_prompts(model, tokenizer, prompts, new)
    job = Job([prompt.text for prompt in prompts], {**settings, "max_new_tokens": new}, fingerprint(model, tokenizer))
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("generating"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with open_answers(out, job) as answers:
        before = answers.count
        try:
            with bar:
                task = bar.add_task("generating", total=len(prompts), completed=before)
                answer_all(
                    answers,
                    lambda begin, texts: write(texts, begin, new),
                    batch_size,
                    lambda count: bar.update(task, completed=count),
                )
        except KeyboardInterrupt:
            done = f"{answers.count} of {len(prompts)} prompts are answered: the same command goes on from there."
            print(done, file=sys.stderr)
            raise
    there = f" ({before} of them were there already)" if before else ""
    print(f"answers    {out}: {len(prompts)}{there}")
    return 0
