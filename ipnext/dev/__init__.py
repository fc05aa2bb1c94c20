"""The embedded platform: `ipnext dev` starts every process here; `ipnext.dev.platform.run` begins."""
