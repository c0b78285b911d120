"""The whole job, from a model and data to a verified, measured slim network.

The package can be called: ``curlfx.run(config)`` is `curlfx.run.runner.run`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Run(ModuleType):
    """The package, which the public name ``curlfx.run`` means too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `curlfx.run.runner.run`."""
        from curlfx.run.runner import run

        return run(*args, **kwargs)


sys.modules[__name__].__class__ = _Run
