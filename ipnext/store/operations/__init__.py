"""Writes to several parts of the repository: claims on quotas, the end of a change, refused routes.

For activities and the API, in a unit of work of theirs. Begin with `change_end`.
"""
