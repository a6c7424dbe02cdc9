"""The generation settings that come with a model, checked before anything obeys them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from anyformer.errors import UserError, quote
from anyformer.limits import read_object
from anyformer.schema import fits

FILE = "generation_config.json"
_MOST_BEAMS = 1024
_MOST_TOKENS = 100_000
"""Items of a list: each costs time for each token that is generated."""

Test = Callable[[Any], bool]


def _whole(smallest: int, largest: int = 2**31 - 1) -> Test:
    return lambda value: fits(value, int) and smallest <= value <= largest


def _list_of(test: Test) -> Test:
    return lambda value: (
        isinstance(value, list) and len(items := _list(value)) <= _MOST_TOKENS and all(map(test, items))
    )


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


_id = _whole(-1)  # files write -1 for a token that does not exist
_ids = _list_of(_id)
_TYPES: Sequence[tuple[str, Test, str]] = [
    ("do_sample", lambda value: isinstance(value, bool), "true or false"),
    (
        "min_length min_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size top_k",
        _whole(0),
        "a whole number, 0 or more",
    ),
    ("length_penalty temperature top_p", lambda value: fits(value, float), "a finite number"),
    (
        "repetition_penalty encoder_repetition_penalty",
        lambda value: fits(value, float) and value > 0,
        "a positive number",
    ),
    ("num_beams", _whole(1, _MOST_BEAMS), f"a whole number from 1 to {_MOST_BEAMS}"),
    ("early_stopping", lambda value: isinstance(value, bool) or value == "never", 'true, false or "never"'),
    ("bos_token_id pad_token_id decoder_start_token_id", _id, "the id of a token"),
    (
        "eos_token_id forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens",
        lambda value: _id(value) or _ids(value),
        "the id of a token, or a list of them",
    ),
    ("bad_words_ids", _list_of(_ids), "a list of lists of token ids"),
    (
        "sequence_bias",
        _list_of(lambda value: len(_list(value)) == 2 and _ids(value[0]) and fits(value[1], float)),
        "a list of pairs, each of a list of token ids and a number",
    ),
]
"""Fields, what each may hold, and that in words."""
_TESTS = {field: (test, words) for fields, test, words in _TYPES for field in fields.split()}
FIELDS = list(_TESTS)


def read(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's generation_config.json, {} where it has none; then `config`, its config.json, is asked for the same.

    Raises UserError where a field that `anyformer.generation` reads holds something else than it should.
    """
    path = directory / FILE
    settings = read_object(path) if path.is_file() else {}
    path = path if settings else directory / "config.json"
    for field, (test, words) in _TESTS.items():
        value = (settings or config).get(field)
        if value is not None and not test(value):
            raise UserError(f"{path}: {field} should be {words}, not {quote(value)}.")
    return settings
