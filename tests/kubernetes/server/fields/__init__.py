"""Patches and field ownership, as pure functions of objects and schemas. Entry point: `ownership`."""
