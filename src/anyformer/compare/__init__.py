"""Models side by side: how they differ, what they learn from the same text, and which is better at what.

The package can be called: ``af.compare(["gpt2", "llama"], data="notes.txt")`` is `anyformer.compare.compare.compare`.
"""

import sys

from anyformer import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
