"""Criteria: what each coupled channel is worth."""
