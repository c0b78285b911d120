"""The rewrites: FX graph in, FX graph out; nothing else lives here. Imports as `curlfx.passes` and as nothing else."""

if __name__ != "curlfx.passes":
    raise ImportError(f"the folder passes/ imports as 'curlfx.passes', not as {__name__!r}; install curlfx first")
