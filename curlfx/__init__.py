"""curlfx."""
