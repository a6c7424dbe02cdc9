"""A model class for lm-eval (EleutherAI's evaluation harness), and its suites of tasks.

Importing this module registers the model, so that ``lm_eval.simple_evaluate(model="anyformer",
model_args="pretrained=DIR", tasks=["piqa"])`` works. The log-likelihoods are those of lm-eval's ``hf`` model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from anyformer.checkpoint import load
from anyformer.errors import UserError
from anyformer.evaluation.scorer import Continuation, log_likelihoods
from anyformer.generation.batching import BatchingEngine
from anyformer.generation.config import GenerationConfig, GenerationOptions
from anyformer.generation.inference import require_generative, require_tokenizer
from anyformer.model import Transformer
from anyformer.quantization import parameter_count
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise UserError("Suites of tasks need lm-eval: pip install 'anyformer[eval]'.") from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_NEW_TOKENS = 256
"""New tokens of a text whose task doesn't say how many: lm-eval's own number."""
_REASON = 300
"""Characters of lm-eval's own words that a message repeats."""
_SAMPLING = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}
_Tokens = tuple[tuple[str, str] | None, list[int], list[int]]


class AnyformerLM(TemplateLM):
    """Any model that generates text, as lm-eval wants it.

    Args:
        pretrained: A model directory, a GGUF file, a hub id, or a model.
        tokenizer: That of a model which is given as such.
        batch_size: Texts that are generated at a time; None or "auto": 16. Log-likelihoods are batched by their tokens.
        device, dtype, quantize, adapter: As in `anyformer.load`.
        max_length: Tokens that the model sees at most; None: as many as it was trained on.
        max_batch_size: Ignored: lm-eval gives it to every model.

    Raises:
        UserError: as `anyformer.load`, a model that doesn't generate text or has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | Transformer,
        tokenizer: Tokenizer | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        adapter: str | Sequence[str] = (),
        max_length: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, Transformer):
            self.name = pretrained.config.model_type
            self.model = pretrained
        else:
            self.name = pretrained
            dtype = None if dtype == "auto" else dtype
            self.model, tokenizer = load(pretrained, dtype, device, quantize=quantize, adapter=adapter)
        require_generative(self.model)
        self.tokenizer: Any = require_tokenizer(tokenizer, "lm-eval gives it texts")
        self.max_length = int(max_length or self.model.config.max_length)
        self.batch_size = 16 if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.backend = "seq2seq" if self.model.config.is_encoder_decoder else "causal"
        self._device: Any = self.model.device

    @property
    @override
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos
        return next(iter(self.model.config.special_tokens.eos), 0) if eos is None else eos

    @property
    @override
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.tokenizer.bos is None else self.tokenizer.bos

    @property
    @override
    def tokenizer_name(self) -> str:
        return f"{self.name.replace('/', '__')}-{self.tokenizer.fingerprint[:16]}"

    @override
    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            # A rendered chat template begins with the beginning of text itself.
            begin = self.tokenizer.decode([self.prefix_token_id], skip_special=False)
            add_special_tokens = not string.startswith(begin)
        return self.tokenizer.encode(string, special=add_special_tokens)

    @override
    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            text = self.tokenizer.chat(chat_history, add_generation_prompt)
        except UserError:
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = self.tokenizer.chat(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        # The last message is continued, so that nothing of the template follows it.
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    @override
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[int, _Tokens]] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((number, (None, *make_disjoint_window(window))))
        sums = [0.0] * len(requests)
        answers = self._loglikelihood_tokens([tokens for _, tokens in windows], disable_tqdm)
        for (number, _), (logprob, _) in zip(windows, answers, strict=True):
            sums[number] += logprob
        for request, logprob in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return sums

    @override
    def _loglikelihood_tokens(
        self, requests: Sequence[_Tokens], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # A context of spaces alone has no token: they are part of the continuation.
        parts = [Continuation(context or [self.prefix_token_id], ids) for _, context, ids in requests]
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            advance: Any = bar.update
            scores = log_likelihoods(self.model, parts, max_length=self.max_length, progress=advance)
        answers = [(each.logprob, each.is_greedy) for each in scores]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    @override
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts: list[tuple[list[int], GenerationConfig]] = []
        for context, settings in (cast("tuple[str, dict[str, Any]]", request.args) for request in requests):
            config = _generation_config(settings)
            new = config.max_new_tokens or _NEW_TOKENS
            room = self.max_length if self.backend == "seq2seq" else self.max_length - new
            if room < 1:
                raise UserError(f"The task asks for {new} new tokens, and the model sees {self.max_length} in all.")
            prompts.append((self.tok_encode(context)[-room:], config))
        capacity = max((len(ids) + (config.max_new_tokens or 0) for ids, config in prompts), default=2)
        engine = BatchingEngine(self.model, self.tokenizer, self.batch_size, capacity=max(2, capacity))
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            waiting = [engine.submit(ids, config) for ids, config in prompts]
            while engine.step():
                bar.update(len(waiting) - engine.running - engine.waiting - bar.n)
            bar.update(len(waiting) - bar.n)
        texts: list[str] = []
        for request, made, (_, config) in zip(requests, waiting, prompts, strict=True):
            # As hf does, the new tokens are decoded by themselves, without the space that may be before them.
            text = self.tokenizer.decode(made.tokens)
            for stop in config.stop:
                text = text.partition(stop)[0]
            self.cache_hook.add_partial("generate_until", request.args, text)
            texts.append(text)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """Facts on the model that lm-eval writes down."""
        return {"model_num_parameters": parameter_count(self.model), "model_dtype": str(self.model.dtype)}


register_model("anyformer")(AnyformerLM)


def run_suite(
    model: Transformer,
    tokenizer: Tokenizer | None,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    chat_template: bool = False,
    batch_size: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run tasks of lm-eval.

    Args:
        model, tokenizer: A model that generates text.
        tasks: Names of lm-eval's tasks and groups, whose data come from the hub, or YAML files of your own. Like
            lm-eval, this runs the code that a task names.
        limit: Examples of each task; None: all.
        few_shot: Examples that are shown before each question; None: as the task says.
        chat_template: Ask the questions in the model's chat template.
        batch_size: Texts that are generated at a time.

    Returns:
        The results of each task: its metrics, such as ``acc,none``, their standard errors ``acc_stderr,none``, and
        ``samples``, the number of its examples.

    Raises:
        UserError: an unknown task, data that can't be loaded, a model that doesn't generate text.
    """
    import logging

    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The index of lm-eval's own tasks takes seconds.
    manager = TaskManager(include_defaults=not all(map(_is_file, tasks)))
    for task in tasks:
        if not _is_file(task) and not manager.match_tasks([task]):
            close = difflib.get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them."
            raise UserError(f"lm-eval has no task {task!r}, nor is it a YAML file: {hint}")
    lm = AnyformerLM(model, tokenizer, batch_size)
    try:
        evaluated = cast("Any", evaluator.simple_evaluate)(
            lm,
            tasks=list(tasks),
            num_fewshot=few_shot,
            limit=limit,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except UserError:
        raise
    except Exception as error:  # a task can fail in any way
        reason = shorten(str(error).strip() or type(error).__name__, _REASON).rstrip(".")
        raise UserError(f"lm-eval can't run {', '.join(tasks)}: {reason}.") from error
    results = cast("Mapping[str, Mapping[str, Mapping[str, Any]]]", evaluated)
    samples = {name: {"samples": count["effective"]} for name, count in results["n-samples"].items()}
    # lm-eval writes "N/A" for a standard error that there is not.
    numbers = {
        task: {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in results["results"].items()
    }
    return {task: {**metrics, **samples.get(task, {})} for task, metrics in numbers.items()}


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) and Path(task).is_file()


def _generation_config(settings: Mapping[str, Any]) -> GenerationConfig:
    """The generation settings of a task. Raises UserError for settings that mean nothing here."""
    from lm_eval.models.utils import normalize_gen_kwargs

    rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), _NEW_TOKENS))
    options: dict[str, Any] = {
        "max_new_tokens": rest.pop("max_gen_toks"),
        "stop": tuple(stop for stop in rest.pop("until") if stop),
    }
    samples = rest.pop("do_sample")
    for name, kind in _SAMPLING.items():
        if (value := rest.pop(name, None)) is not None and (samples or name == "repetition_penalty"):
            options[name] = kind(value)
    if rest:
        raise UserError(f"The task asks for generation settings that are not supported: {', '.join(sorted(rest))}.")
    return GenerationConfig(**cast("GenerationOptions", options))
