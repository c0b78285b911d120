"""Hypothesis profiles: a short one that draws the same networks every time, and a long one with fresh networks.

`HYPOTHESIS_PROFILE=nightly python -m pytest tests/properties` searches for new counterexamples.
"""

import os

from hypothesis import HealthCheck, settings

_RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

settings.register_profile(
    "default", max_examples=60, derandomize=True, deadline=None, suppress_health_check=_RELAXED, print_blob=True
)
settings.register_profile(
    "nightly", max_examples=1000, derandomize=False, deadline=None, suppress_health_check=_RELAXED, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
