"""`python -m serving.host`, also as a fork: docs/decisions/0022."""

from ipnext.process.garbage_collection import collect_after_imports

with collect_after_imports():
    from serving.host.host import main, preload

__all__ = ["main", "preload"]

if __name__ == "__main__":
    main()
