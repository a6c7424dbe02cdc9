"""Every transformer from the same few blocks: train, load, prove, save and generate.

::

    import anyformer as af
    model, tokenizer = af.load("openai-community/gpt2")
    print(af.generate(model, tokenizer, ["Once upon a time"], max_new_tokens=20))

Names are imported when they are first used, so that `import anyformer` costs nothing.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyformer.adapters import merge
    from anyformer.checkpoint import load, load_with_head, save, save_adapter, save_gguf
    from anyformer.compare.compare import compare
    from anyformer.config import ModelConfig
    from anyformer.errors import UserError
    from anyformer.evaluation import classify, tag
    from anyformer.evaluation.score import score
    from anyformer.families import preset
    from anyformer.finetuning.finetune import FinetuneResult, finetune
    from anyformer.generation import (
        BatchingEngine,
        GenerationConfig,
        embed,
        fill,
        generate,
        generate_ids,
        generate_samples,
        generate_stream,
    )
    from anyformer.learn.attention_maps import Attention, attention
    from anyformer.learn.diagram import diagram
    from anyformer.learn.eject import eject
    from anyformer.learn.explain import explain
    from anyformer.model import ModelOutput, Transformer
    from anyformer.plan.plan import TrainingPlan, plan
    from anyformer.quantization import quantize
    from anyformer.serving.serve import serve
    from anyformer.spec import build, diff
    from anyformer.tasks.evaluate import evaluate
    from anyformer.tokenizer import Tokenizer
    from anyformer.training.train import TrainResult, train

__version__ = "0.2.0"

_NAMES = {
    "adapters": "merge",
    "checkpoint": "load load_with_head save save_adapter save_gguf",
    "compare.compare": "compare",
    "config": "ModelConfig",
    "errors": "UserError",
    "evaluation": "classify tag",
    "evaluation.score": "score",
    "families": "preset",
    "finetuning.finetune": "FinetuneResult finetune",
    "generation": "BatchingEngine GenerationConfig embed fill generate generate_ids generate_samples generate_stream",
    "learn.attention_maps": "Attention attention",
    "learn.diagram": "diagram",
    "learn.eject": "eject",
    "learn.explain": "explain",
    "model": "ModelOutput Transformer",
    "plan.plan": "TrainingPlan plan",
    "quantization": "quantize",
    "serving.serve": "serve",
    "spec": "build diff",
    "tasks.evaluate": "evaluate",
    "tokenizer": "Tokenizer",
    "training.train": "TrainResult train",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "Attention",
    "BatchingEngine",
    "FinetuneResult",
    "GenerationConfig",
    "ModelConfig",
    "ModelOutput",
    "Tokenizer",
    "TrainResult",
    "TrainingPlan",
    "Transformer",
    "UserError",
    "attention",
    "build",
    "classify",
    "compare",
    "diagram",
    "diff",
    "eject",
    "embed",
    "evaluate",
    "explain",
    "fill",
    "finetune",
    "generate",
    "generate_ids",
    "generate_samples",
    "generate_stream",
    "load",
    "load_with_head",
    "merge",
    "plan",
    "preset",
    "quantize",
    "save",
    "save_adapter",
    "save_gguf",
    "score",
    "serve",
    "tag",
    "train",
]


class CallablePackage(ModuleType):
    """A package that calls the function of its name, in the module of its name: `compare.compare.compare`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{self.__name__}.{name}"), name)(*arguments, **options)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
