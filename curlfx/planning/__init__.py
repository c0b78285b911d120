"""From scores and a target to a plan: which channels stay."""
