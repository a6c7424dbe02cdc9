"""Text to token ids and back: load any Hugging Face tokenizer, train one, save it as a `tokenizer.json`.

core             Tokenizer: encode, decode, chat, save; StreamDecoder: decoding one token at a time
loading          a directory of any kind -> a Tokenizer
tokenizer_files  reading and writing the files of a tokenizer
legacy           directories from before tokenizer.json: vocab.txt, vocab.json + merges.txt
sentencepiece    spiece.model, and Marian's pair of SentencePiece models
training         char, byte-level BPE, WordPiece and Unigram from one's own text
library          what the library `tokenizers` raises, as UserError
chat             chat templates
prompt           what a decoder reads before it goes on, in training as in generation
template_sandbox the sandbox that they are rendered in, and template_budget, what they pay for
"""

from anyformer.tokenizer import loading
from anyformer.tokenizer.core import StreamDecoder, Tokenizer
from anyformer.tokenizer.tokenizer_files import has_tokenizer

Tokenizer.reader = loading.load

__all__ = ["StreamDecoder", "Tokenizer", "has_tokenizer"]
