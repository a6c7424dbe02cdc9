"""`anyformer generate MODEL --file prompts.txt --out answers.jsonl`: the progress bar of a batch job."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anyformer.generation.batch_job import FilePrompt, answer_prompts
from anyformer.generation.config import GenerationOptions
from anyformer.generation.speculative_decoding import Draft
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def answer_file(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: list[FilePrompt],
    out: Path,
    settings: Mapping[str, Any],
    draft: Draft | None,
    **options: Unpack[GenerationOptions],
) -> int:
    """Answer the prompts of a file; returns the exit status. For the arguments, see `answer_prompts`."""
    console = Console(stderr=True)
    columns = (TextColumn("generating"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("generating", total=len(prompts))
    counts: list[int] = []

    def progress(count: int) -> None:
        counts.append(count)
        bar.update(task, completed=count)

    try:
        with bar:
            answer_prompts(model, tokenizer, prompts, out, settings, progress=progress, draft=draft, **options)
    except KeyboardInterrupt:
        if counts:
            done = f"{counts[-1]} of {len(prompts)} prompts are answered: the same command goes on from there."
            print(done, file=sys.stderr)
        raise
    there = f" ({counts[0]} of them were there already)" if counts[0] else ""
    print(f"answers    {out}: {len(prompts)}{there}")
    return 0
