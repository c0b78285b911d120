"""The whole job, from a model and data to a verified, measured slim network: ``curlfx.run(config)``.

The package has the name of its one function and can be called like it.
"""

import sys
from types import ModuleType
from typing import Any


class RunPackage(ModuleType):
    """A package that does its job when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Do as `curlfx.run.runner.run` does."""
        from curlfx.run.runner import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = RunPackage
