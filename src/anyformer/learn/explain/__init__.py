"""A page in which a model runs: plain JavaScript, its weights in 8-bit integers, and no network.

description  a model as data for the page's script, and its weights in 8-bit integers
tokenizer    its tokenizer as data, and regular expressions in JavaScript's words
engine/      scripts that run a model and its tokenizer
view/        scripts that show what it computes

Here is the page, with all scripts, and the text that it opens with.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyformer import atomic, limits
from anyformer.checkpoint import load
from anyformer.checkpoint.adapter_directory import find_adapter
from anyformer.checkpoint.load import inspect
from anyformer.config import ModelConfig
from anyformer.data.documents import documents
from anyformer.data.input_files import walk
from anyformer.errors import UserError
from anyformer.generation.config import GenerationConfig
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.prompt import decoder_start_id, eos_ids
from anyformer.learn import require_own_blocks
from anyformer.learn.diagram import draw, panels
from anyformer.learn.explain.description import describe, pack, page_weights
from anyformer.learn.explain.tokenizer import can_encode, describe_tokenizer
from anyformer.model import Transformer, skeleton
from anyformer.pages.formatting import count
from anyformer.pages.render import render
from anyformer.quantization import parameter_count
from anyformer.runs.directory import CONFIG, EVALUATION, MODEL
from anyformer.runs.listing import passages, read_run
from anyformer.tokenizer import Tokenizer
from anyformer.training.config_file import read_yaml

__all__ = ["explain"]

MOST_PARAMETERS = 36_000_000
"""Parameters on a page: a byte each, a third more in base64, and a second of a browser's time for 30 tokens."""
_KINDS = {
    "activation": ("relu", "relu_squared", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"),
    "norm": ("layer", "layer_no_bias", "rms", "rms_offset", "rms_plain"),
    "position": ("none", "sinusoidal", "learned", "rotary", "relative", "disentangled"),
}


def explain(
    model: Transformer | str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    name: str | None = None,
    directory: str | Path | None = None,
) -> str:
    """A page in which a model runs: what it computes of one's own text, step by step, without a network.

    ``Path("model.html").write_text(af.explain("runs/llama-nano-1"), encoding="utf-8")``

    The page has the weights of matrices in integers of 8 bits with a scale for each row, and all others in float32;
    plain JavaScript computes with them what the model does, for every architecture that a config describes, and gets
    the tokenizer's ids.

    Args:
        model: A model of at most 36 million parameters, or a model or run directory.
        tokenizer: Its tokenizer; of a directory, the one in it.
        name: What the page calls it; None: as the directory.
        directory: Of a model that is loaded already, its run directory: the page opens with a text of the run's data.

    Returns:
        The page, as HTML.

    Raises:
        UserError: a model that is too large or has blocks of somebody's own, no tokenizer, one that a page doesn't
            know, weights that are not finite; of a directory, as `load`.
    """
    if not isinstance(model, Transformer):
        name, directory = Path(model).name if name is None else name, model
        check_stored(str(model))
        model, tokenizer = load(model)
    check(model.config, parameter_count(model))
    tokenizer = require_tokenizer(tokenizer, "copy the tokenizer.json that it was trained with beside its weights")
    largest = model.config.source_vocab_size or model.config.vocab_size
    if tokenizer.vocab_size > largest:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens, and the model {largest:,}: take the tokenizer that it "
            "was trained with."
        )
    values = _values(model, tokenizer, name or "a model")
    values["example"] = first_text(model.config, tokenizer, None if directory is None else Path(directory))
    return render("explain.html", values, __package__ or "", "anyformer.learn.attention_maps")


def check_stored(path_or_hub_id: str) -> None:
    """`check` what `load` would load, before its weights are read. Raises UserError as `inspect` does."""
    if find_adapter(path_or_hub_id) is None:
        config, _ = inspect(path_or_hub_id)
        check(config, parameter_count(skeleton(config)))


def check(config: ModelConfig, parameters: int) -> None:
    """Raise UserError for a model that no page can run."""
    require_own_blocks(config, _KINDS, "a page can't run")
    if parameters > MOST_PARAMETERS:
        raise UserError(
            f"The model has {count(parameters)} parameters, and a page runs at most {count(MOST_PARAMETERS)} in a "
            "browser: take a smaller one, or look at this one with `anyformer attention`."
        )


def _values(model: Transformer, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    config = model.config
    listed, weights = pack(page_weights(model))
    kind = "encoder-decoder" if config.is_encoder_decoder else "decoder" if config.is_decoder_only else "encoder"
    titles = {"encoder": ["Encoder"], "decoder": ["Decoder"], "encoder-decoder": ["Encoder", "Decoder", "Cross"]}
    heads = config.attention.heads
    layers = " + ".join(str(each) for each in (config.encoder_layers, config.decoder_layers) if each)
    return {
        "title": f"{name} · anyformer",
        "state": "",
        "model": name,
        "kind": kind,
        "facts": [
            kind,
            f"{count(parameter_count(model))} parameters",
            f"{layers} layer{'s' if layers != '1' else ''} of {heads} head{'s' if heads > 1 else ''}",
            f"{config.vocab_size:,} tokens known",
        ],
        "reads": {
            "writes": config.decoder_layers > 0 and config.head.kind == "language_model",
            "fills": _fills(config),
            "labels": "classification" in config.head.kind,
        },
        "attention": {"stacks": [{"title": title} for title in titles[kind]]},
        "data": {
            "model": describe(model),
            "weights": listed,
            "tokenizer": describe_tokenizer(tokenizer, config.special_tokens),
            "start": decoder_start_id(model) if config.is_encoder_decoder else None,
            "eos": list(eos_ids(model, GenerationConfig())),
        },
        "weights": Markup(weights),
        "diagram": Markup(draw(panels([(name, config)]))),
        "engine": Markup(engine()),
        "page_script": Markup(source("view", _VIEW)),
    }


def _fills(config: ModelConfig) -> bool:
    return config.is_encoder_only and config.head.kind == "language_model"


_ENGINE = (
    *("tensor", "position", "attention", "block", "model", "sampling", "tokenizer/characters", "tokenizer/normalizer"),
    *("tokenizer/pre_tokenizer", "tokenizer/subwords", "tokenizer/decoder", "tokenizer/tokenizer"),
)
_VIEW = ("elements", "reading", "session", "overview", "details", "page")


def engine() -> str:
    """The source of what runs a model and its tokenizer, which needs neither a page nor a network."""
    return source("engine", _ENGINE)


def source(folder: str, names: tuple[str, ...]) -> str:
    """The source of files of a folder beside this one, in this order."""
    directory = files(__package__ or "") / folder
    return "\n".join((directory / f"{name}.js").read_text(encoding="utf-8") for name in names)


_MOST_WORDS, _MOST_CHARACTERS = 14, 80
_FEWEST_WORDS = 4
"""Words of a recorded sample: a prompt of one word says little."""
_TEXTS = ("The cat could not sleep because it was", "def main(self, name):\n    return")
"""For a model without data: prose, and Python, whose standard library is learned where no data is given."""


def first_text(config: ModelConfig, tokenizer: Tokenizer, directory: Path | None = None) -> str:
    """A text of characters that the tokenizer knows; empty: it knows none of those that there are.

    Args:
        config: Of the model. One that fills in masked tokens gets a word to fill in.
        directory: A run directory or the model in it, whose data is looked for first: the examples that were evaluated,
            the samples, and the files that were trained on.
    """
    mask = tokenizer.mask_token if _fills(config) else None
    vocabulary = sorted(tokenizer.backend.get_vocab(with_added_tokens=False))
    of_run = map(_beginning, _of_run(directory)) if directory is not None else iter(())
    prepared = [text for text in _TEXTS if can_encode(tokenizer, text)]
    prepared.sort(key=lambda text: len(tokenizer.encode(text)) / len(text))  # few tokens: it was made for such a text
    texts = (text if mask is None else _masked(text, mask) for text in (*of_run, *prepared, "the", *vocabulary))
    return next((text for text in texts if text.strip() and can_encode(tokenizer, text)), "")


def _of_run(directory: Path) -> Iterator[str]:
    """The first text of each kind that a run has, the examples of fine-tuning first."""
    run = directory.parent if directory.name == MODEL and not (directory / CONFIG).is_file() else directory
    # It may be of another version, or anybody's, and any of it may be gone.
    broken = (UserError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError)
    if not (run / CONFIG).is_file():
        return
    with suppress(*broken):
        values = limits.read_object(run / EVALUATION)
        yield from (str(row["question"]) for row in [*values["answers"], *values["worst"]][:1])
    with suppress(*broken):
        texts = (passage["before"] + passage["after"] for line in read_run(run).samples for passage in passages(line))
        yield from (text for text in texts if len(text.split()) >= _FEWEST_WORDS)
    with suppress(*broken):
        # A config.yaml of somebody else may name files that are nobody's business.
        settings = read_yaml(atomic.check_own(run / CONFIG))
        for each in map(Path, settings.data):
            file = next(walk(each), None) if each.is_dir() else each
            if file is not None and file.is_file():
                yield next(documents([file], settings.field)).text
                return


def _beginning(text: str) -> str:
    """The first words, with the spaces and line ends between them."""
    words, end = text.split(), 0
    for word in words[:_MOST_WORDS]:
        behind = text.index(word, end) + len(word)
        if end and behind > _MOST_CHARACTERS:
            break
        end = behind
    return text[:end].strip()[:_MOST_CHARACTERS]


def _masked(text: str, mask: str) -> str:
    """The text with a word in its second half masked, of letters if there is such a word."""
    words = text.split(" ")
    half = range(len(words) // 2, len(words))
    index = next((index for index in half if words[index].isalpha()), len(words) - 1)
    return " ".join([*words[:index], mask, *words[index + 1 :]])
