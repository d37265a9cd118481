"""`python -m cas_checkpoint`: the command line."""

from cas_checkpoint.cli import main

if __name__ == "__main__":
    main()
