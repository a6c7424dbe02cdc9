"""`/v1/embeddings`, `/v1/rerank`, `/v1/classify` and `/v1/fill`: models that read text."""

import base64
import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from anyformer.evaluation.classify import Classification, classify
from anyformer.generation.encoders import fill, vector_size
from anyformer.serving.api.fields import RequestBody, Unused
from anyformer.serving.errors import ApiError, blaming
from anyformer.serving.state import ServerOf

router = APIRouter()

Text = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]


class EmbeddingRequest(RequestBody):
    """Texts that become vectors."""

    input: Texts | _Ids | Annotated[list[_Ids], Field(min_length=1, max_length=2048)]
    """Texts, or token ids with special ones."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    """Only the model's own number."""
    user: Unused[str] = None


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request, server: ServerOf) -> dict[str, Any]:
    """Turn texts into vectors, as OpenAI's `/v1/embeddings`."""
    served, given = server.find(body.model), body.input
    served.require_tokenizer()
    if body.dimensions not in (None, size := vector_size(served.model)):
        raise ApiError(
            400,
            f"Vectors of {body.model} have {size} dimensions, and the model is not known to be trained for their first "
            f"{body.dimensions:,} alone: leave out dimensions.",
            "dimensions",
        )
    texts: Any = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    async with server.running(request.receive, served):
        with blaming("input"):
            answers = await served.embeddings(texts)
    tokens = sum(count for _, count in answers)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, (vector, _) in enumerate(answers)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _written(vector: Any, encoding: str | None) -> list[float] | str:
    return base64.b64encode(vector.numpy().tobytes()).decode() if encoding == "base64" else vector.tolist()


class RerankRequest(RequestBody):
    """Documents that are put in order by how well they answer a query."""

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=2048)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = True


@router.post("/v1/rerank")
async def rerank(body: RerankRequest, request: Request, server: ServerOf) -> dict[str, Any]:
    """Order documents, as Jina's and Cohere's `/v1/rerank`.

    A classifier with one output reads query and document together; of any other model the cosine of the two vectors is
    the score.
    """
    served = server.find(body.model)
    tokenizer = served.require_tokenizer()
    async with server.running(request.receive, served):
        if "classification" in served.capabilities:
            if served.model.config.head.labels not in (0, 1):
                raise ApiError(400, f"{body.model} has several labels, and orders nothing: ask /v1/classify.", "model")
            answers = await served.call(lambda: classify(served.model, tokenizer, body.documents, body.query))
            scores = [1 / (1 + math.exp(-max(-700.0, *answer.scores.values()))) for answer in answers]
        else:
            first, *others = [vector for vector, _ in await served.embeddings([body.query, *body.documents])]
            scores = [float((first @ other) / (first.norm() * other.norm())) for other in others]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents is not False:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    return {"model": body.model, "results": results}


class ClassifyRequest(RequestBody):
    """Texts, or pairs of texts, that are labeled."""

    input: Texts
    second: Texts | None = None
    """The second text of each pair."""


@router.post("/v1/classify")
async def classify_texts(body: ClassifyRequest, request: Request, server: ServerOf) -> dict[str, Any]:
    """Label texts."""
    served = server.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if "classification" not in served.capabilities:
        raise ApiError(400, f"The model {body.model} is no classifier.", "model", "unsupported_model")
    async with server.running(request.receive, served):
        with blaming("input"):
            work = partial(classify, served.model, served.tokenizer, texts, body.second)
            answers: Sequence[Classification] = await served.call(work)
    data = [
        {"index": index, "label": answer.label, "labels": list(answer.labels), "scores": dict(answer.scores)}
        for index, answer in enumerate(answers)
    ]
    return {"object": "list", "model": body.model, "data": data}


class FillRequest(RequestBody):
    """A text with masks."""

    text: Text
    top: Annotated[int, Field(ge=1, le=100)] = 5


@router.post("/v1/fill")
async def fill_masks(body: FillRequest, request: Request, server: ServerOf) -> dict[str, Any]:
    """Predict the masked tokens of a text."""
    served = server.find(body.model)
    async with server.running(request.receive, served):
        with blaming("text"):
            masks = await served.call(lambda: fill(served.model, served.tokenizer, body.text, body.top))
    return {"object": "list", "model": body.model, "data": [[vars(candidate) for candidate in mask] for mask in masks]}
