"""Tools in OpenAI's words."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from anyformer.serving.api.fields import Strict
from anyformer.serving.api.turn import make_tools
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.tool_formats import Function, Tools

MOST_TOOLS = 128
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionBody(Strict):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None
    """Enforce the schema."""

    def made(self) -> Function:
        """The function."""
        return Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=bool(self.strict)
        )


class Tool(Strict):
    """A tool."""

    type: Literal["function"]
    function: FunctionBody


class ChosenFunction(Strict):
    """The name of a function."""

    name: ToolName


class ChosenTool(Strict):
    """A tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


Choice = Literal["none", "auto", "required"]


def chosen_tools(
    served: ServedModel, functions: Sequence[Function], choice: str, only: str | None, parallel: bool, has_rules: bool
) -> Tools | None:
    """The tools of a request; None: there are none, or they may not be called.

    Args:
        has_rules: The text of the answer obeys a grammar.

    Raises:
        ApiError: as `make_tools`, and for tools beside a grammar or a choice without tools.
    """
    if not functions:
        if choice == "required" or only is not None:
            raise ApiError(400, "tool_choice wants a call, and there are no tools.", "tool_choice")
        return None
    if choice == "none" and only is None:
        return None
    if has_rules:
        raise ApiError(
            400, "An answer can't be both a call of a tool and of a given form: set tool_choice none.", "tools"
        )
    return make_tools(served, functions, required=choice == "required", only=only, parallel=parallel)
