"""The version of transformers that is compared with: before 5.24 some of its models and tokenizers were otherwise."""

from importlib.metadata import version

import pytest
from packaging.version import Version

IS_OLDER = Version(version("transformers")) < Version("5.24")
needs_newer_transformers = pytest.mark.skipif(IS_OLDER, reason="transformers before 5.24 does this otherwise")
CHANGED = ("DebertaV2", "DeepseekV2", "GptOss", "Gemma2", "ModernBert", "Olmo3", "PhiFor", "PhiModel")
CHANGED_PRESETS = ("deepseek-v2", "gemma-embedding", "modernbert", "olmo-3")
"""Models that it computed or read otherwise, by their classes, and by our names."""
