"""Which channels live and die together, and which are frozen and why."""
