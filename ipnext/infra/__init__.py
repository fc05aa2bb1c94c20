"""Core infrastructure behind one port: the embedded one runs local processes."""
