"""`/`: the page, and the policy that keeps it from everything but this server."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from anyformer.pages.render import render

router = APIRouter()

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@router.get("/", include_in_schema=False)
async def index() -> HTMLResponse:
    """Answer with the page."""
    text, policy = rendered()
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


@cache
def rendered() -> tuple[str, str]:
    """The page and its Content-Security-Policy, by which its own style and script are all that may run."""
    code = (files(__name__) / "page.js").read_text(encoding="utf-8")
    text = render("index.html", {"code": Markup(code)}, __name__)
    hashes = {kind: hashlib.sha256(content.encode()).digest() for kind, content in _INLINE.findall(text)}
    allowed = {
        **{f"{kind}-src": f"'sha256-{base64.b64encode(digest).decode()}'" for kind, digest in hashes.items()},
        "connect-src": "'self'",
        "img-src": "data:",
        "require-trusted-types-for": "'script'",
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    return text, "; ".join(f"{name} {source}" for name, source in allowed.items())
