"""Attention on one's own text: the weights of every head, what heads do, and a page that shows both.

weights      the attention weights of a model that reads a text
heads        how much of a head's attention follows a pattern, such as the previous token
page         attention.html
"""

from anyformer.learn.attention_maps.page import Attention
from anyformer.learn.attention_maps.weights import attention

__all__ = ["Attention", "attention"]
