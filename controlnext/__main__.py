"""``python -m controlnext``: the same as the ``controlnext`` command."""

from controlnext.commands import main

if __name__ == "__main__":
    main()
