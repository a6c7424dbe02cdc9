"""The model that is fine-tuned: loaded, with the head of its task and perhaps an adapter; and saved."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.adapters import add_adapter
from anyformer.blocks.initialization import Cut
from anyformer.blocks.norm import LayerNorm, OffsetRMSNorm, RMSNorm
from anyformer.checkpoint import load, load_with_head, save, save_adapter
from anyformer.config import HeadConfig, ModelConfig, ProblemType
from anyformer.families import with_head
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.model import Transformer
from anyformer.tasks import TASKS
from anyformer.tokenizer import Tokenizer
from anyformer.training.losses import PAIR_CLASSIFIER

PROBLEMS: Mapping[str | None, Any] = {
    "single": "single_label_classification",
    "multiple": "multi_label_classification",
    "regression": "regression",
    None: None,
}
"""The head's problem type, by the kind of label."""
_NORMS = LayerNorm | RMSNorm | OffsetRMSNorm


def load_options(config: CompleteFinetuneConfig) -> dict[str, Any]:
    """How the base is read."""
    return {"quantize": config.quantize, "allow_pickle": config.allow_pickle, "dtype": config.base_dtype}


def is_bare_seq2seq(model: ModelConfig) -> bool:
    """Whether an encoder-decoder lacks a head that would be its token table, such as bart-base."""
    return model.is_encoder_decoder and model.head.kind == "none" and model.embedding.tied


def with_head_of_task(model: ModelConfig, config: CompleteFinetuneConfig) -> ModelConfig:
    """The config of a model with the head that the run's task trains. Raises UserError if its family has none."""
    head = TASKS[config.task].head
    if head in ("language_model", model.head.kind):
        return model
    labels = config.labels or (1 if config.label_kind == "regression" else 2)
    return with_head(model, head, labels, PROBLEMS[config.label_kind])


def build_model(
    config: CompleteFinetuneConfig, base: ModelConfig, tokenizer: Tokenizer, cut: Cut | None = None
) -> Transformer:
    """The model with its first weights. A head that the base lacks is drawn, and saved with an adapter.

    Args:
        base: The config of the base as it is stored.
        tokenizer: The base's, which is not read again.
        cut: what this process keeps of a weight of the base; None: all of it.
    """
    options: dict[str, Any] = {**load_options(config), "cut": cut, "tokenizer": tokenizer}
    task = TASKS[config.task]
    head, problem = task.head, PROBLEMS[config.label_kind]
    if head == "language_model" and is_bare_seq2seq(base):
        model, _ = load_with_head(config.base, head, **options)
    elif head == "language_model" or _has_head(base.head, head, config.labels, problem):
        model, _ = load(config.base, **options)
    else:
        model, _ = load_with_head(config.base, head, config.labels or 1, problem_type=problem, **options)
    if task.makes_vectors:
        pooling = replace(model.config.pooling, max_tokens=config.context)
        model.config = replace(model.config, pooling=pooling)
    if config.adapter is None:
        model.requires_grad_(True)
    else:
        add_adapter(model, config.adapter)
        train_in_float32(model)
    # What the loss doesn't reach gets no gradient, which engines of several processes would wait for.
    if task.makes_vectors and model.encoder is not None and model.decoder is not None:
        model.decoder.requires_grad_(False)
    if model.pooler is not None and head != "classification":
        model.pooler.requires_grad_(False)
    if config.loss == "softmax":
        model.add_module(PAIR_CLASSIFIER, nn.Linear(3 * model.config.d_model, len(config.labels)))
    return model


def train_in_float32(model: Transformer) -> None:
    """Keep trained weights in float32, and those of norms, which take next to no memory.

    Hidden states are added up in float32, too.
    """
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            trained = parameter.requires_grad
            if parameter.dtype != torch.float32 and (trained or isinstance(module, _NORMS)):
                setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=trained))


def _has_head(head: HeadConfig, kind: str, labels: tuple[str, ...], problem: ProblemType | None) -> bool:
    """Whether a model has the head of the task, with the same labels."""
    if head.kind != kind:
        return False
    if problem == "regression":
        return head.labels == 1 and head.problem_type in (None, problem)
    return kind == "none" or (head.label_names == labels != () and head.problem_type in (None, problem))


def save_model(model: Transformer, directory: Path, tokenizer: Tokenizer, config: CompleteFinetuneConfig) -> str:
    """Write the model, or its adapter alone; returns what the directory is, for people."""
    with _without_pair_classifier(model):
        if config.adapter is None:
            save(model, directory, tokenizer=tokenizer)
            return "a Hugging Face directory"
        base = Path(config.base)
        save_adapter(model, directory, base=str(base.absolute()) if base.exists() else config.base)
        tokenizer.save(directory)
        return "an adapter in PEFT's format"


@contextmanager
def _without_pair_classifier(model: Transformer) -> Generator[None]:
    """The model without the classifier, which serves training alone, as that of sentence-transformers' loss."""
    classifier = dict(model.named_children()).get(PAIR_CLASSIFIER)
    if classifier is None:
        yield
        return
    delattr(model, PAIR_CLASSIFIER)
    try:
        yield
    finally:
        model.add_module(PAIR_CLASSIFIER, classifier)
