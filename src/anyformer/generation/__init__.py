"""What models are for: writing text, filling masks, turning texts into vectors.

sampling   logits -> the next token
rules      what a model's generation settings force and ban
prompt     texts -> ids -> one batch
generate   the loop over tokens, and texts in and out of it
embed      one vector a text
fill       the words behind masks
"""

from anyformer.generation.embed import embed
from anyformer.generation.fill import Candidate, fill
from anyformer.generation.generate import generate, generate_ids, generate_stream, stream_ids
from anyformer.generation.prompt import room
from anyformer.generation.sampling import Sampling

__all__ = [
    "Candidate",
    "Sampling",
    "embed",
    "fill",
    "generate",
    "generate_ids",
    "generate_stream",
    "room",
    "stream_ids",
]
