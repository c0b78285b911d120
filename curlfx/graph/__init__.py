"""From a model to a checked FX graph with shapes, source lines and a stable printed form."""
