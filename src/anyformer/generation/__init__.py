"""What models are for: generating text, filling masks, turning texts into vectors.

config                how texts are generated
generate              texts in and out
decode                the loop over tokens
beam_search           the search for the likeliest text
speculative_decoding  tokens that are guessed, and judged together
batching              texts that enter and leave a running batch
conversation          turns in the words of a chat template
batch_job             prompts from a file, answers into another
prompt                texts -> ids -> one batch
prefill               what the model has read
prefix_cache          what of a text is known already
logits_processors     forced, banned and penalized tokens
sampling              logits -> the next token
stop_strings          the text before a stop string
special_ids           tokens that start, end and pad a text
score                 how likely given texts are
embed                 one vector a text
fill                  the words behind masks
"""

from anyformer.generation.batching import BatchingEngine, Request, TokenLogprob
from anyformer.generation.beam_search import Hypotheses, beam_search_ids
from anyformer.generation.config import GenerationConfig
from anyformer.generation.conversation import Conversation
from anyformer.generation.decode import generate_ids, stream_ids
from anyformer.generation.embed import embed
from anyformer.generation.fill import Candidate, fill
from anyformer.generation.generate import Hypothesis, generate, generate_n_best, generate_samples, generate_stream
from anyformer.generation.prompt import encode_prompt, room
from anyformer.generation.score import Score, score

__all__ = [
    "BatchingEngine",
    "Candidate",
    "Conversation",
    "GenerationConfig",
    "Hypotheses",
    "Hypothesis",
    "Request",
    "Score",
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
    "score",
    "stream_ids",
]
