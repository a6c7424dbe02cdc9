"""A page in which a model runs: plain JavaScript, its weights in 8-bit integers, and no network.

description  what the page's script is to know of a model
weights      its weights, in 8-bit integers
tokenizer    what the script is to know of its tokenizer; regex and characters, parts of that
scripts      the scripts, one after the other
engine/      those that run a model and its tokenizer; view/, those that show what it computes
page         the page
"""

from anyformer.learn.explain.page import explain

__all__ = ["explain"]
