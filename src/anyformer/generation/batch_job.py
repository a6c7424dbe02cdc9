"""A batch job: prompts from a file, answers into another, which stays whole whenever the job is killed.

::

    answers.jsonl       one line a prompt, in their order: {"index": 0, "prompt": "...", "text": "..."}
    answers.jsonl.job   what the answers depend on: settings, and hashes of the prompts and of the model

A job that is started again continues behind the last complete line, if it is still the same job.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from filelock import FileLock, Timeout

from anyformer import atomic
from anyformer.data.input_files import RECORD_SUFFIXES, suffix_of
from anyformer.data.records import records
from anyformer.data.sources import text_lines
from anyformer.errors import UserError
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, GenerationOptions
from anyformer.generation.generate import generate
from anyformer.generation.inference import require_generative, require_tokenizer
from anyformer.generation.prompt import encode_prompt
from anyformer.generation.speculative_decoding import Draft
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_SAMPLES = 512
"""Numbers of each weight that its hash is made of."""


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """A prompt, and where it stands, in words."""

    text: str
    where: str


def read_prompts(path: Path, field: str = "prompt") -> list[FilePrompt]:
    """The prompts of a file: the lines of a text, or a field of the records of a .jsonl, .csv, .tsv or .parquet file.

    Raises:
        UserError: the file can't be read, or a prompt is missing or empty (with the number of its line).
    """
    if not path.is_file():
        raise UserError(f"There is no file of prompts at {path}.")
    found: list[FilePrompt] = []
    for number, text in _lines(path, field):
        where = f"{path}, {'row' if suffix_of(path) == '.parquet' else 'line'} {number}"
        if not text.strip():
            raise UserError(f"{where}, has an empty prompt: write one, or take the line out.")
        found.append(FilePrompt(text, where))
    if not found:
        raise UserError(f"There is no prompt in {path}: write one a line.")
    return found


def _lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    if suffix_of(path) in RECORD_SUFFIXES:
        for number, (text,) in records(path, (field,)):
            yield number, text
    else:
        yield from enumerate(text_lines(path), start=1)


def encode_prompts(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[FilePrompt], max_new_tokens: int
) -> list[list[int]]:
    """The ids of prompts.

    Raises:
        UserError: for the first prompt that can't be encoded, or leaves no room in the context for its answer.
    """
    context = model.config.context_length
    longest = None if context is None else context - (0 if model.config.is_encoder_decoder else max_new_tokens)
    rows: list[list[int]] = []
    for prompt in prompts:
        try:
            rows.append(encode_prompt(model, tokenizer, prompt.text))
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}") from error
        if longest is not None and len(rows[-1]) > longest:
            raise UserError(
                f"{prompt.where}, has {len(rows[-1])} tokens, and the model's context of {context} has room for "
                f"{max(0, longest)} (max_new_tokens {max_new_tokens}): shorten it, or ask for fewer new tokens."
            )
    return rows


def answer_prompts(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[FilePrompt],
    out: Path,
    settings: Mapping[str, Any],
    *,
    progress: Callable[[int], None],
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> None:
    """Answer prompts, or those that an earlier start has left.

    Args:
        model, tokenizer, draft, options: As for `generate`; without `max_new_tokens`, answers have at most 200 or half
            of the context, whichever is less.
        prompts: See `read_prompts`.
        out: Where the answers go.
        settings: What the answers depend on, by name, with the `batch_size`.
        progress: Called at first and after each batch with the number of answers that there are.

    Raises:
        UserError: as `generate`, `encode_prompts` and `open_answers`.
    """
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_generative(model)
    config, context = GenerationConfig.for_model(model, **options), model.config.context_length
    new = options.get("max_new_tokens")
    if new is None:
        new = DEFAULT_NEW_TOKENS if context is None else max(1, min(DEFAULT_NEW_TOKENS, context // 2))
    rows = encode_prompts(model, tokenizer, prompts, new)

    def write(begin: int, texts: Sequence[str]) -> list[str]:
        # One seed for all batches would draw the same for the same prompt in each.
        seed = None if config.seed is None else config.seed + begin
        here = config.replace(max_new_tokens=new, seed=seed)
        return generate(model, tokenizer, rows[begin : begin + len(texts)], here, draft=draft)

    job = Job([prompt.text for prompt in prompts], {**settings, "max_new_tokens": new}, fingerprint(model, tokenizer))
    with open_answers(out, job) as answers:
        progress(answers.count)
        answer_all(answers, write, settings["batch_size"], progress)


@dataclass(frozen=True)
class Job:
    """What the answers depend on."""

    prompts: Sequence[str]
    settings: Mapping[str, Any]
    """Values that JSON can hold, by name; the batch size is one of them."""
    model: str
    """A hash, see `fingerprint`."""

    def summary(self) -> dict[str, Any]:
        """As it is written beside the answers."""
        prompts = hashlib.sha256(json.dumps(list(self.prompts)).encode()).hexdigest()
        return {"settings": dict(self.settings), "count": len(self.prompts), "prompts": prompts, "model": self.model}


def fingerprint(model: Transformer, tokenizer: Tokenizer) -> str:
    """A hash that changes with the weights (of each a few hundred numbers are looked at), the settings that came with
    the model, and the tokenizer."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    digest.update(json.dumps([dict(model.origin.config), dict(model.origin.generation)], sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        some = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLES)].contiguous().cpu()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Answers:
    """The file of answers of a job that is open; see `open_answers`.

    Attributes:
        count: how many there are.
    """

    def __init__(self, path: Path, job: Job, count: int) -> None:
        self.path, self.job, self.count = path, job, count

    def append(self, texts: Sequence[str]) -> None:
        """Add the answers to the next prompts. Raises UserError when the disk refuses."""
        lines: list[str] = []
        for index, text in enumerate(texts, start=self.count):
            line = {"index": index, "prompt": self.job.prompts[index], "text": text}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        try:
            with self.path.open("ab") as file:
                file.write("".join(lines).encode("utf-8", errors="replace"))
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written: {error.strerror or error}. Make room, and start the job again."
            ) from error
        self.count += len(texts)


@contextmanager
def open_answers(path: Path, job: Job) -> Generator[Answers]:
    """Begin a job, or go on with it: half a line at the end of the file is cut off.

    Raises:
        UserError: the path is no file; another process is at it; the file was written by something else, or by a job
            with other prompts, settings or model (the sentence says what changed); the disk refuses.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file, which a job could go on with: choose another for the answers.")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    description = path.with_name(f"{path.name}.job")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        try:
            count, other = _whole_lines(path, job.prompts)
            if count > 0:
                _require_same(path, description, job, other)
            else:
                atomic.write(description, json.dumps(job.summary(), indent=2) + "\n")
                path.touch()
        except BaseException:
            lock.release()
            raise
    except Timeout as error:
        raise UserError(f"{path} is being written by another process: wait for it, or end it.") from error
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}.") from error
    try:
        yield Answers(path, job, count)
    finally:
        lock.release()


def answer_all(
    answers: Answers,
    write: Callable[[int, Sequence[str]], Sequence[str]],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Answer all prompts that have no answer yet.

    Args:
        answers: The open file.
        write: Makes the answers of one batch of prompts, of which the first has this index.
        batch_size: Prompts in a batch. Batches begin at its multiples, also when a job goes on, since the answers of a
            batch that is drawn depend on each other.
        progress: Called after each batch with the number of answers that there are.
    """
    prompts = answers.job.prompts
    for begin in range(answers.count - answers.count % batch_size, len(prompts), batch_size):
        texts = write(begin, prompts[begin : begin + batch_size])
        answers.append(texts[answers.count - begin :])
        if progress is not None:
            progress(answers.count)


def _whole_lines(path: Path, prompts: Sequence[str]) -> tuple[int, int | None]:
    """Count the answers in a file, and find the first whose prompt is another; half a line at the end is cut off."""
    if not path.exists():
        return 0, None
    count, size, other = 0, 0, None
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            prompt = _prompt_of(line, count)
            if prompt is None:
                raise UserError(
                    f"{path}, line {count + 1}, is no answer of such a job: choose another file for the answers."
                )
            if other is None and (count >= len(prompts) or prompt != prompts[count]):
                other = count
            count, size = count + 1, size + len(line)
    if count == 0 and path.stat().st_size > 0 and not path.with_name(f"{path.name}.job").exists():
        raise UserError(f"{path} holds something else: choose another file for the answers.")
    if size < path.stat().st_size:
        os.truncate(path, size)
    return count, other


def _prompt_of(line: bytes, index: int) -> str | None:
    """The prompt in the line of an answer, None where it is none or not the one with this index."""
    try:
        record = json.loads(line)
        return str(record["prompt"]) if record["index"] == index and isinstance(record["text"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


def _require_same(path: Path, description: Path, job: Job, other: int | None) -> None:
    try:
        before = cast("dict[str, Any]", json.loads(description.read_text(encoding="utf-8")))
        settings: dict[str, Any] = before["settings"]
        count, prompts, model = before["count"], before["prompts"], before["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{description} is missing or damaged, so nobody can say what {path} was made of: choose another file for "
            "the answers."
        ) from error
    now = job.summary()
    changes = [
        f"{name} was {settings.get(name)!r} and is {now['settings'].get(name)!r}"
        for name in dict.fromkeys((*settings, *now["settings"]))
        if settings.get(name) != now["settings"].get(name)
    ]
    if count != now["count"]:
        changes.append(f"there were {count} prompts and are {now['count']}")
    if prompts != now["prompts"]:
        changes.append("prompts have changed" + ("" if other is None else f", the first of them number {other + 1}"))
    if model != now["model"]:
        changes.append("the model is another")
    if changes:
        raise UserError(
            f"{path} was begun otherwise: {'; '.join(changes)}. Take that back, or choose another file for the answers."
        )
    if other is not None:
        raise UserError(f"{path}, line {other + 1}, is not the answer to its prompt: somebody has changed the file.")
