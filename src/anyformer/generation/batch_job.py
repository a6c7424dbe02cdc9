"""A batch job: prompts from a file, answers to another, which stays complete whenever the job is killed.

::

    answers.jsonl       one line a prompt, in their order: {"index": 0, "prompt": "...", "text": "..."}
    answers.jsonl.job   what the answers depend on: settings, and hashes of the prompts and of the model

A job that is started again continues behind the last complete line, if it is still the same job.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from filelock import FileLock, Timeout

from anyformer import atomic, limits
from anyformer.data.disk_cache import Cache
from anyformer.data.formats import text_lines
from anyformer.data.input_files import RECORD_SUFFIXES, suffix_of
from anyformer.data.materialize import STANDARD_INPUT, keep_standard_input
from anyformer.data.rows import records
from anyformer.errors import UserError, quote
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, GenerationOptions
from anyformer.generation.generate import generate
from anyformer.generation.inference import require_generative, require_tokenizer
from anyformer.generation.prompt import encode_prompt
from anyformer.generation.speculative_decoding import Draft
from anyformer.limits import MEGABYTE, RECORD_BYTES
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_SAMPLES = 512
"""Numbers of each weight that its hash is made of."""
_PROMPTS_SIZE, _PROMPT_OVERHEAD = 256 * MEGABYTE, 100
"""Characters of all prompts of a file, and how many each counts beside its own."""
_OTHER_FILE = "choose another file for the answers"


class FilePrompt(NamedTuple):
    """A prompt and its file and line, for messages."""

    text: str
    location: str


def read_prompts(
    path: Path, field: str = "prompt", max_record_bytes: int = RECORD_BYTES, noun: str = "prompt"
) -> list[FilePrompt]:
    """The prompts of a file: the lines of a text, or a field of the records of a .jsonl, .csv, .tsv or .parquet file;
    ``-`` is standard input.

    Raises:
        UserError: the file can't be read, or a prompt, which the message calls by the noun, is missing, empty or too
            large (with the number of its line); or there are too many to be held in memory.
    """
    shown = path
    if str(path) == STANDARD_INPUT:
        shown, path = Path("standard input"), keep_standard_input(Cache(), sniff=True, option="--file")
    if not path.is_file():
        raise UserError(f"There is no file of {noun}s at {path}.")
    suffix, prompts = suffix_of(path), list[FilePrompt]()
    is_record = suffix in RECORD_SUFFIXES
    texts = ((text,) for text in text_lines(path, max_record_bytes))
    lines = records(path, (field,), max_record_bytes) if is_record else enumerate(texts, start=1)
    size = 0
    for number, (text,) in lines:
        location = f"{shown}, {'row' if suffix == '.parquet' else 'line'} {number}"
        if not text.strip():
            raise UserError(f"{location}, has an empty {noun}: write one, or take the line out.")
        prompts.append(FilePrompt(text, location))
        size += len(text) + _PROMPT_OVERHEAD
        if size > _PROMPTS_SIZE:
            raise UserError(f"{path} has more {noun}s than fit into memory: split it into several files.")
    if not prompts:
        raise UserError(f"There is no {noun} in {shown}: write one a line.")
    return prompts


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
    """Answer prompts, or those that an earlier start has left (see `BatchJob`).

    Other arguments are those of `generate`; without `max_new_tokens`, answers have at most 200 or half of the context,
    whichever is less.

    Raises:
        UserError: as `generate` and `BatchJob.run`; a prompt that can't be encoded, or leaves no room in the context
            for its answer.
    """
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_generative(model)
    config, context = GenerationConfig.for_model(model, **options), model.config.context_length
    new = options.get("max_new_tokens")
    if new is None:
        new = DEFAULT_NEW_TOKENS if context is None else max(1, min(DEFAULT_NEW_TOKENS, context // 2))
    config = config.replace(max_new_tokens=new)
    rows = [_encode(model, tokenizer, prompt, new) for prompt in prompts]

    def write(begin: int, texts: Sequence[str]) -> list[str]:
        # One seed for all batches would draw the same for the same prompt in each.
        seeded = config if config.seed is None else config.replace(seed=config.seed + begin)
        return generate(model, tokenizer, rows[begin : begin + len(texts)], seeded, draft=draft)

    settings = {**settings, "max_new_tokens": new}
    BatchJob(out, [prompt.text for prompt in prompts], settings, fingerprint(model, tokenizer)).run(write, progress)


def _encode(model: Transformer, tokenizer: Tokenizer, prompt: FilePrompt, max_new_tokens: int) -> list[int]:
    try:
        ids = encode_prompt(model, tokenizer, prompt.text)
    except UserError as error:
        raise UserError(f"{prompt.location}: {error}") from error
    if (context := model.config.context_length) is not None:
        longest = context - (0 if model.config.is_encoder_decoder else max_new_tokens)
        if len(ids) > longest:
            raise UserError(
                f"{prompt.location}, has {len(ids)} tokens, and the model's context of {context} has room for "
                f"{max(0, longest)} (max_new_tokens {max_new_tokens}): shorten it, or ask for fewer new tokens."
            )
    return ids


def fingerprint(model: Transformer, tokenizer: Tokenizer) -> str:
    """A hash of some numbers of each weight, of the settings that came with the model, and of the tokenizer."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    digest.update(json.dumps([dict(model.origin.config), dict(model.origin.generation)], sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        sample = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLES)].contiguous().cpu()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class BatchJob:
    """Prompts whose answers are appended to a file."""

    path: Path
    prompts: Sequence[str]
    settings: Mapping[str, Any]
    """Settings that the answers depend on, by name, as JSON can hold them; `batch_size` is one."""
    model: str
    """The hash of the model, see `fingerprint`."""
    count: int = 0
    """How many answers there are."""

    def run(
        self, write: Callable[[int, Sequence[str]], Sequence[str]], progress: Callable[[int], None] = lambda count: None
    ) -> None:
        """Answer all prompts that have no answer yet; half a line at the end of the file is cut off.

        Args:
            write: Makes the answers of one batch of prompts, of which the first has this index. Batches begin at
                multiples of their size, also when a job goes on, since sampled answers of a batch depend on each other.
            progress: Called at first and after each batch with the number of answers that there are.

        Raises:
            UserError: the path is no regular file, or another process is at it; the file is not of this job (the
                sentence says what changed); the disk refuses.
        """
        path, size = self.path, self.settings["batch_size"]
        lock_file = path.with_name(f".{path.name}.lock")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file, which a job could go on with: choose another for the answers.")
        with atomic.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for each in (path, lock_file):
                atomic.refuse_link(each)
            limits.check_file(lock_file)
            try:
                lock = FileLock(lock_file).acquire(timeout=0)
            except Timeout as error:
                raise UserError(f"{path} is being written by another process: wait for it, or end it.") from error
        with lock:
            with atomic.writing(path):
                self._resume()
            progress(self.count)
            for begin in range(self.count - self.count % size, len(self.prompts), size):
                texts = write(begin, self.prompts[begin : begin + size])
                with atomic.writing(path, advice=" Make room, and start the job again."):
                    self._append(texts[self.count - begin :])
                progress(self.count)

    def _append(self, texts: Sequence[str]) -> None:
        lines = ""
        for index, text in enumerate(texts, start=self.count):
            answer = {"index": index, "prompt": self.prompts[index], "text": text}
            lines += json.dumps(answer, ensure_ascii=False) + "\n"
        atomic.append(self.path, lines)
        self.count += len(texts)

    def _resume(self) -> None:
        """Count the answers in the file, or begin it."""
        path, description = self.path, self.path.with_name(f"{self.path.name}.job")
        self.count, size, wrong = 0, 0, None
        atomic.append(path, "")
        with limits.open_file(path) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                prompt = _prompt_of(line, self.count)
                if prompt is None:
                    raise UserError(f"{path}, line {self.count + 1}, is no answer of such a job: {_OTHER_FILE}.")
                if wrong is None and (self.count >= len(self.prompts) or prompt != self.prompts[self.count]):
                    wrong = self.count
                self.count, size = self.count + 1, size + len(line)
        if self.count == 0 and path.stat().st_size > 0 and not description.exists():
            raise UserError(f"{path} holds something else: {_OTHER_FILE}.")
        if size < path.stat().st_size:
            os.truncate(path, size)
        if self.count == 0:
            atomic.write(description, json.dumps(self._summary(), indent=2) + "\n")
        else:
            self._require_same(description, wrong)

    def _require_same(self, description: Path, wrong: int | None) -> None:
        """Raise UserError for a file of another job; the prompt of this index is the first that differs."""
        path, now = self.path, self._summary()
        try:
            before = limits.read_object(limits.path_inside(path.parent, description.name))
            settings: dict[str, Any] = dict(**before["settings"])
            changed = [name for name in ("count", "prompts", "model") if before[name] != now[name]]
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"{description} is missing or damaged, so nobody can say what {path} was made of: {_OTHER_FILE}."
            ) from error
        changes = [
            f"{name} was {quote(old)} and is {quote(new)}"
            for name in sorted({*settings, *now["settings"]})
            if (old := settings.get(name)) != (new := now["settings"].get(name))
        ]
        first = "" if wrong is None else f", the first of them number {wrong + 1}"
        count = f"there were {before['count']} prompts and are {now['count']}"
        sentences = {"count": count, "prompts": f"prompts have changed{first}", "model": "the model is another"}
        if changes := changes + [sentences[name] for name in changed]:
            raise UserError(f"{path} was begun otherwise: {'; '.join(changes)}. Take that back, or {_OTHER_FILE}.")
        if wrong is not None:
            raise UserError(
                f"{path}, line {wrong + 1}, is not the answer to its prompt: somebody has changed the file."
            )

    def _summary(self) -> dict[str, Any]:
        prompts = hashlib.sha256(json.dumps(list(self.prompts)).encode()).hexdigest()
        return {"settings": dict(self.settings), "count": len(self.prompts), "prompts": prompts, "model": self.model}


def _prompt_of(line: bytes, index: int) -> str | None:
    """The prompt of an answer; None where the line is none, or not the one with this index."""
    try:
        record = limits.parse_object(line, "the answer")
        return str(record["prompt"]) if record["index"] == index and isinstance(record["text"], str) else None
    except (UserError, KeyError):
        return None
