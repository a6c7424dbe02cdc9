"""Text to token ids and back: load any Hugging Face tokenizer, train one, save it as a `tokenizer.json`.

core             Tokenizer: encode, decode, chat, save; StreamDecoder: decoding one token at a time
loading          a directory of any kind, also from before tokenizer.json -> a Tokenizer
files            the files of a tokenizer: names, contents, and the tokens by role that they declare
sentencepiece    spiece.model, spm.model, M2M-100's and Marian's SentencePiece models
training         char, byte-level BPE, WordPiece and Unigram from one's own text
library          parts of pipelines of the library `tokenizers`, and its errors as UserError
texts            texts as a program holds them, and what is no text
prompt           what a decoder reads before it goes on, in training as in generation
template_sandbox chat templates, and template_budget, the cost of what they do
"""

from anyformer.tokenizer import loading
from anyformer.tokenizer.core import StreamDecoder, Tokenizer
from anyformer.tokenizer.files import has_tokenizer

Tokenizer.reader = loading.load

__all__ = ["StreamDecoder", "Tokenizer", "has_tokenizer"]
