"""A page in which a model runs: plain JavaScript, its weights in 8-bit integers, and no network.

description  a model as data for the page's script, and its weights in 8-bit integers
tokenizer    its tokenizer as data, and regular expressions in JavaScript's words
engine/      scripts that run a model and its tokenizer
view/        scripts that show what it computes
page         the page, with all scripts
"""

from anyformer.learn.explain.page import explain

__all__ = ["explain"]
