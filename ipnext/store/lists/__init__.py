"""Reads of many records at once: pages of every list, and facts of many models with one statement for each kind.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `pages`.
"""
