"""Engines: what runs a part inside a host."""
