"""Differences of SQLite and PostgreSQL: connections, transactions, types of columns, errors.

For the store only. Begin with `dialects`.
"""
