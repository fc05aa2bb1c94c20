"""The embedded platform: `ipnext dev` starts every process here. Begin with `ipnext.dev.platform.run`."""
