"""Lets `stzoo.pretrain(...)` be called though `stzoo.pretrain` is a module."""

import sys
from types import ModuleType
from typing import Any


class _CommandModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


def callable_module(name: str) -> None:
    """Makes a call of the module a call of the function in it that has the module's name."""
    sys.modules[name].__class__ = _CommandModule
