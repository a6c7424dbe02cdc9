"""Generating text, filling masks, embedding texts.

prompt -> cached_decoder -> logits_processors -> sampling   from a text to the next token
decode, beam_search, speculative_decoding, batching         loops over tokens (request: a text of a batch)
generate, conversation, batch_job                           texts in, texts out
encoders                                                    vectors of texts, tokens for masks
"""

from anyformer.generation.batching import BatchingEngine
from anyformer.generation.beam_search import Hypotheses, beam_search_ids
from anyformer.generation.config import GenerationConfig
from anyformer.generation.conversation import Conversation
from anyformer.generation.decode import generate_ids, stream_ids
from anyformer.generation.encoders import Candidate, embed, fill
from anyformer.generation.generate import Hypothesis, generate, generate_n_best, generate_samples, generate_stream
from anyformer.generation.prompt import encode_prompt, room
from anyformer.generation.request import Request, TokenLogprob

__all__ = [
    "BatchingEngine",
    "Candidate",
    "Conversation",
    "GenerationConfig",
    "Hypotheses",
    "Hypothesis",
    "Request",
    "TokenLogprob",
    "beam_search_ids",
    "embed",
    "encode_prompt",
    "fill",
    "generate",
    "generate_ids",
    "generate_n_best",
    "generate_samples",
    "generate_stream",
    "room",
    "stream_ids",
]
