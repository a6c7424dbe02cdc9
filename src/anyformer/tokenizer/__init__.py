"""Text to token ids and back: load any Hugging Face tokenizer, train one, save it as a `tokenizer.json`.

core           Tokenizer: encode, decode, chat, save
files          a directory on disk -> the pieces of a Tokenizer, and safe writes
legacy         directories from before tokenizer.json: vocab.txt, vocab.json + merges.txt
sentencepiece  spiece.model, and Marian's pair of models
training       char, byte-level BPE, WordPiece and Unigram from one's own text
words          which tokens make up a word
chat           sandboxed chat templates
stream         decoding one token at a time
"""

from anyformer.tokenizer.core import Tokenizer
from anyformer.tokenizer.files import has_tokenizer
from anyformer.tokenizer.stream import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer", "has_tokenizer"]
