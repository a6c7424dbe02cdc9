"""The scripts of a page: plain JavaScript, one file after the other in one scope."""

from importlib.resources import files

_ENGINE = (
    *("tensor", "position", "attention", "block", "model", "sampling"),
    *(
        f"tokenizer/{name}"
        for name in ("characters", "normalizer", "pre_tokenizer", "subwords", "decoder", "tokenizer")
    ),
)


def engine() -> str:
    """The source of what runs a model and its tokenizer, which needs neither a page nor a network."""
    return source("engine", _ENGINE)


def source(folder: str, names: tuple[str, ...]) -> str:
    """The source of files of a folder beside this one, in this order."""
    directory = files(__package__ or "") / folder
    return "\n".join((directory / f"{name}.js").read_text(encoding="utf-8") for name in names)


def page_script() -> str:
    """The source of what shows a model that runs."""
    return source("view", ("elements", "reading", "session", "overview", "details", "page"))
