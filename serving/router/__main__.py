"""`python -m serving.router`, also as a fork: docs/decisions/0022."""

from ipnext.process.garbage_collection import collect_after_imports

with collect_after_imports():
    from serving.router.router import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
