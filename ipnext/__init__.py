"""IPnext: one platform for the whole life of model deployments, from publishing to serving."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ipnext")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
