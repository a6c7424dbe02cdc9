"""Answers with JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response
from typing_extensions import override

dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Compact JSON."""


class JsonAnswer(Response):
    """A response with JSON. Half of a surrogate pair, which a model or a client can write into JSON, becomes a
    question mark."""

    media_type = "application/json"

    @override
    def render(self, content: Any) -> bytes:
        return dumps(content).encode("utf-8", "replace")
