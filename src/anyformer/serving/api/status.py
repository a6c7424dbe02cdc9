"""`/health`, `/metrics`, `/v1/models`, `/tokenize` and `/detokenize`."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field

from anyformer.serving.api.fields import RequestBody
from anyformer.serving.errors import blaming
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import ServerOf

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server is there."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(server: ServerOf) -> Response:
    """Counts and durations, in Prometheus's format."""
    return Response(server.metrics.render(server.models.values()), media_type="text/plain; version=0.0.4")


@router.get("/v1/models")
async def models(server: ServerOf) -> dict[str, Any]:
    """The models that are served."""
    return {"object": "list", "data": [_described(served) for served in server.models.values()]}


@router.get("/v1/models/{name:path}")
async def model(name: str, server: ServerOf) -> dict[str, Any]:
    """One of them."""
    return _described(server.find(name))


def _described(served: ServedModel) -> dict[str, Any]:
    engine, tokenizer = served.worker.engine, served.tokenizer
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "anyformer",
        **({} if served.parent is None else {"parent": served.parent}),
        "model_type": served.model.config.model_type,
        "max_model_len": served.model.config.context_length if engine is None else engine.capacity,
        "capabilities": served.capabilities,
        "is_encoder_decoder": served.model.config.is_encoder_decoder,
        "eos_token_ids": served.ends,
        "chat_template": tokenizer is not None and tokenizer.chat_template is not None,
    }


class TokenizeRequest(RequestBody):
    """A text that becomes token ids."""

    prompt: str
    add_special_tokens: bool | None = True


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, server: ServerOf) -> dict[str, Any]:
    """Token ids of a text."""
    served = server.find(body.model)
    with blaming("prompt"):
        ids = served.require_tokenizer().encode(body.prompt, special=body.add_special_tokens is not False)
    return {"tokens": ids, "count": len(ids), "max_model_len": _described(served)["max_model_len"]}


class DetokenizeRequest(RequestBody):
    """Token ids that become a text."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]]


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, server: ServerOf) -> dict[str, str]:
    """The text of token ids."""
    with blaming("tokens"):
        return {"prompt": server.find(body.model).require_tokenizer().decode(body.tokens, skip_special=False)}
