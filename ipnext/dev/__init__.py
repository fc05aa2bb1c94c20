"""The embedded platform: `ipnext dev` starts every process here."""

from ipnext.dev.platform import run

__all__ = ["run"]
