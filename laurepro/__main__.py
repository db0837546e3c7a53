"""`python -m laurepro`."""

from laurepro.cli import main

if __name__ == "__main__":
    main()
