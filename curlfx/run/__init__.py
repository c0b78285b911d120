"""The whole job, from a model and data to a verified, measured slim network."""
