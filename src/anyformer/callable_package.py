"""Packages that are a function as well, as both have the same name in `anyformer`."""

from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that calls the function of its name, in the module of its name: `compare.compare.compare`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{self.__name__}.{name}"), name)(*arguments, **options)
