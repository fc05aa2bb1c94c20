"""`python -m serving.router`, also as a fork: docs/decisions/0022."""

from serving.router.router import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
