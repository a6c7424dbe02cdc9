"""A page in which a model runs: plain JavaScript, its weights in 8-bit integers, and no network.

description  what the page's script is to know of a model, and its weights in 8-bit integers
tokenizer    what the script is to know of its tokenizer; regex, a part of that
engine/      those that run a model and its tokenizer; view/, those that show what it computes
page         the page, with all scripts
"""

from anyformer.learn.explain.page import explain

__all__ = ["explain"]
