"""Label arrays: which channel an element of a tensor belongs to."""
