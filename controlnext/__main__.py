"""``python -m controlnext``: the same as the ``controlnext`` command."""

from controlnext.cli import main

if __name__ == "__main__":
    main()
