"""MACs and parameters per node, per coupling group and for any keep set."""
