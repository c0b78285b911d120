"""``python -m curlfx``: the same program as the ``curlfx`` command."""

from curlfx.cli import main

if __name__ == "__main__":
    main()
