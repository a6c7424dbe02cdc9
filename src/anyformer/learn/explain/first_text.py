"""The text that a page opens with: a few words of the data that the model learned from, where a run tells of it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from anyformer import limits, ownership
from anyformer.config import ModelConfig
from anyformer.data.input_files import walk
from anyformer.data.sources import documents
from anyformer.errors import UserError
from anyformer.runs.directory import CONFIG, EVALUATION, MODEL
from anyformer.runs.listing import passages, read_run
from anyformer.tokenizer import Tokenizer
from anyformer.training.config_file import read_yaml

_MOST_WORDS, _MOST_CHARACTERS = 14, 80
_FEWEST_WORDS = 4
"""Words of a recorded sample: a prompt of one word says little."""
_TEXTS = ("The cat could not sleep because it was", "def main(self, name):\n    return")
"""For a model without data: prose, and Python, whose standard library is learned where no data is given."""


def first_text(config: ModelConfig, tokenizer: Tokenizer, directory: Path | None = None) -> str:
    """A text of characters that the tokenizer knows; empty: it knows none of those that there are.

    Args:
        config: Of the model. One that fills in masked tokens gets a word to fill in.
        tokenizer: The model's.
        directory: A run directory or the model in it, whose data is looked for first: the examples that were evaluated,
            the samples, and the files that were trained on.
    """
    fills = config.is_encoder_only and config.head.kind == "language_model"
    mask = tokenizer.mask_token if fills else None
    vocabulary = sorted(tokenizer.backend.get_vocab(with_added_tokens=False))
    found = map(_beginning, _of_run(directory)) if directory is not None else iter(())
    known = [text for text in _TEXTS if _is_known(tokenizer, text)]
    known.sort(key=lambda text: len(tokenizer.encode(text)) / len(text))  # few tokens: it was made for such a text
    texts = (text if mask is None else _masked(text, mask) for text in (*found, *known, "the", *vocabulary))
    return next((text for text in texts if _is_known(tokenizer, text)), "")


def _is_known(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.require_encodable([text])
    except UserError:
        return False
    return bool(text.strip())


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
        settings = read_yaml(ownership.check_own(run / CONFIG))
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
    places = [place for place in range(len(words) // 2, len(words)) if words[place].isalpha()]
    place = places[0] if places else len(words) - 1
    return " ".join([*words[:place], mask, *words[place + 1 :]])
