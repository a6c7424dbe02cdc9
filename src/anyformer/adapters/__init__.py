"""Low-rank adapters of any transformer: made new, switched off for a while, merged into the weights."""

from anyformer.adapters.attach import DEFAULT, add_adapter, disabled, merge, remove
from anyformer.adapters.config import LoraConfig

__all__ = ["DEFAULT", "LoraConfig", "add_adapter", "disabled", "merge", "remove"]
