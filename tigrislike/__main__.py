"""`python -m tigrislike` is `tigrislike`."""

from tigrislike.cli import main

if __name__ == "__main__":
    main()
