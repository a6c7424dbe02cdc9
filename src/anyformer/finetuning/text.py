"""Continued pretraining: a model goes on with what it was trained for, on your own text."""

from collections.abc import Sequence
from dataclasses import fields, replace

from typing_extensions import override

from anyformer.console import Console
from anyformer.data.token_files import TokenFile
from anyformer.evaluation.perplexity import Text
from anyformer.finetuning.base import BaseFinetuning
from anyformer.finetuning.config import FinetuneConfig, complete
from anyformer.finetuning.report import Report
from anyformer.model import Transformer
from anyformer.tasks import TASKS
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import prepare
from anyformer.training.run_config import RunConfig
from anyformer.training.sample import Sample, take_sample

_BATCH_TOKENS = 4096
"""Tokens of a batch, about."""
_MEASURED = 1 << 14
"""Tokens whose perplexity is measured before and after training, at most."""


class TextFinetuning(BaseFinetuning):
    """A model that somebody has trained, and text: a decoder predicts it, an encoder fills in what is masked, and an
    encoder-decoder restores corrupted spans.

    Raises:
        UserError: no such model, one without a language-model head or a tokenizer, or text that can't be read.
    """

    def __init__(self, config: FinetuneConfig, console: Console) -> None:
        super().__init__(config)
        base, tokenizer = self.base, self.tokenizer
        task = TASKS[str(config.task)]
        task.check_model(base, config.base)
        made = complete(config, base, task.name)
        batch_size = config.batch_size or max(1, _BATCH_TOKENS // made.context)
        shared = {field.name: getattr(made, field.name) for field in fields(RunConfig)}
        shared |= {"batch_size": batch_size, "steps": None, "minutes": None}
        train = TrainConfig(
            preset=made.label,
            model=base,
            tokenizer=self.name,
            field=config.roles.get("text", "text"),
            vocab_size=base.vocab_size,
            max_length=base.max_length,
            document_masking=made.packing and base.is_decoder_only,
            **shared,
        )
        self._data = prepare(train.complete(), console, tokenizer)
        self.batches, self.fingerprint = self._data.batches, self._data.fingerprint
        self._config = self._in_steps(replace(made, batch_size=batch_size))
        self._report = Report(self._config, tokenizer, text=self._held_out())

    def _held_out(self) -> Text | None:
        """The beginning of the text to validate on, for a model whose loss is that of the next token."""
        held = self._data.held_out
        if not (isinstance(held, TokenFile) and self.base.is_decoder_only):
            return None
        ids = held.ids[:_MEASURED].tolist()
        return Text(ids, round(held.header.bytes * len(ids) / len(held)), start=None)

    @override
    def summary(self) -> Sequence[str]:
        first, *others = self._data.summary()
        return [first.replace("data       ", "data       text, ", 1), *others]

    @override
    def sample(self, model: Transformer) -> Sample:
        return take_sample(model, self.tokenizer, self._config, self.batches)
