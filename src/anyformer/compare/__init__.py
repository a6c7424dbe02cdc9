"""Models side by side: what they cost, how they differ, whether they equal another implementation, which is better.

The package can be called: ``af.compare(["gpt2", "llama"], data="notes.txt")`` is `anyformer.compare.compare.compare`.
"""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that is a function as well, as both have the same name in `anyformer`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from anyformer.compare.compare import compare

        return compare(*arguments, **options)


sys.modules[__name__].__class__ = _Package
