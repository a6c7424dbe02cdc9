"""What models are for: writing text, filling masks, turning texts into vectors.

sampling   logits -> the next token
rules      what a model's generation settings force and ban
prompt     texts -> ids -> one batch
generate   the loop over tokens
beam       the search for the likeliest text
speculation  tokens that are guessed, and judged together
texts      texts in and out of both
engine     texts that enter and leave a running batch
penalties  what was said is said less
stop       the text before a stop string
prefix     what of a text is known already
conversation  turns in the words of a chat template
score      how likely given texts are
embed      one vector a text
fill       the words behind masks
"""

from anyformer.generation.beam import BeamSearch, Hypotheses, beam_search_ids, search_for
from anyformer.generation.conversation import Conversation
from anyformer.generation.embed import embed
from anyformer.generation.engine import Engine, Request, TokenLogprob
from anyformer.generation.fill import Candidate, fill
from anyformer.generation.generate import generate_ids, stream_ids
from anyformer.generation.prompt import room
from anyformer.generation.sampling import Sampling
from anyformer.generation.score import Score, score
from anyformer.generation.texts import Hypothesis, generate, generate_n_best, generate_samples, generate_stream

__all__ = [
    "BeamSearch",
    "Candidate",
    "Conversation",
    "Engine",
    "Hypotheses",
    "Hypothesis",
    "Request",
    "Sampling",
    "Score",
    "TokenLogprob",
    "beam_search_ids",
    "embed",
    "fill",
    "generate",
    "generate_ids",
    "generate_n_best",
    "generate_samples",
    "generate_stream",
    "room",
    "score",
    "search_for",
    "stream_ids",
]
