"""Names of columns."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields

from typing_extensions import override

from anyformer.errors import UserError, nearest, quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of columns, where they aren't the usual ones; `a.b` is column b of the object in column a."""

    text: str | None = None
    """A text, to be learned, classified or embedded."""
    second: str | None = None
    """The second text of a pair."""
    label: str | None = None
    """The label, the labels, or the number of a text or of a pair."""
    prompt: str | None = None
    """A prompt: a text or messages."""
    completion: str | None = None
    """The completion of a prompt: a text or messages."""
    chosen: str | None = None
    """The better answer: a text, a message or messages."""
    rejected: str | None = None
    """The worse answer: a text, a message or messages."""
    messages: str | None = None
    """A conversation."""
    system: str | None = None
    """The system message of a conversation."""
    tools: str | None = None
    """Descriptions of the functions that an assistant may call."""
    source: str | None = None
    """A text to be rewritten, as in translation."""
    target: str | None = None
    """Text that a source is to be rewritten as."""
    tokens: str | None = None
    """A list of words."""
    tags: str | None = None
    """A list with a tag for each word."""
    anchor: str | None = None
    """A text to be embedded, such as a query."""
    positive: str | None = None
    """A text like the anchor, such as an answer to it."""
    negative: str | None = None
    """A text unlike the anchor, or a list of such texts."""
    score: str | None = None
    """How similar the texts of a pair are."""

    def by_role(self) -> dict[str, str]:
        """Columns that are not None."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {role: column for role, column in named if column is not None}

    def flags(self, task: str | None, **columns: str) -> str:
        """Flags that name a task and the columns of roles: ``--task classify --text review --label stars``."""
        named = (f"--{role} {shlex.quote(column)}" for role, column in columns.items())
        return " ".join([*([] if task is None else ["--task", task]), *named])

    def header_flag(self, count: int) -> str:
        """A flag that names so many columns of a file without a header."""
        return f"--header {' '.join(_examples(count))}"


class NamedColumns(Columns):
    """Columns of a command that has one flag for all: ``--columns text=NAME label=NAME``."""

    __slots__ = ()

    @override
    def flags(self, task: str | None, **columns: str) -> str:
        named = (shlex.quote(f"{role}={column}") for role, column in columns.items())
        return " ".join([*([] if task is None else ["--task", task]), "--columns", *named])


class PythonColumns(Columns):
    """Columns that are named in Python: ``columns={"text": NAME, "label": NAME}``."""

    __slots__ = ()

    @override
    def flags(self, task: str | None, **columns: str) -> str:
        return ", ".join([f"task={task!r}"] * (task is not None) + [f"columns={columns}"])

    @override
    def header_flag(self, count: int) -> str:
        return f"header={_examples(count)}"


def _examples(count: int) -> list[str]:
    """Names for so many columns, the usual ones for two."""
    if count == 2:
        return ["text", "label"]
    return [f"NAME{number}" for number in range(1, min(count, 4) + 1)] + ["..."] * (count > 4)


def as_columns(columns: Columns | Mapping[str, str] | None, kind: type[Columns] = NamedColumns) -> Columns | None:
    """Columns by role, of the kind in whose words messages name them. Raises UserError for an unknown role."""
    if columns is None or isinstance(columns, Columns):
        return columns
    roles = [each.name for each in fields(Columns)]
    for role, column in columns.items():
        if role not in roles:
            raise UserError(
                f"The columns have {role}={column}, and there is no role {quote(role)} ({nearest(role, roles)})."
            )
    return kind(**columns)


Names = tuple[str, ...]

LABELS: Names = ("label", "labels", "class", "category", "sentiment", "intent", "stars", "rating")
SCORES: Names = ("score", "similarity_score", "similarity")
TEXTS: Names = ("text", "sentence", "content", "review", "comment", "tweet", "question", "title", "sentence1")
WORDS: Names = ("tokens", "words")
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2")),
    *(("text", "second"), ("text_a", "text_b")),
    *(("question", "sentence"), ("question", "passage"), ("question", "answer"), ("query", "passage")),
)
SYSTEM: Mapping[str, Names] = {"system": ("system", "system_prompt"), "tools": ("tools",)}
CONVERSATION: Names = ("messages", "conversations", "conversation", "dialog")
COMPLETION: Mapping[str, Names] = {"prompt": ("prompt",), "completion": ("completion",)}
