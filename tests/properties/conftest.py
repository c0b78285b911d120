"""How many networks are composed: 200 that are the same every time, or 2000 fresh ones with onnxruntime on each.

`HYPOTHESIS_PROFILE=nightly python -m pytest tests/properties` searches for new counterexamples.
"""

import os

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
