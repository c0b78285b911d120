"""The documentation does what it says: its blocks are run, its links lead somewhere."""
