"""Tasks that every family of transformers can do after training on a text, made from that text alone."""

from anyformer.compare.tasks.result import TaskResult

__all__ = ["TaskResult"]
