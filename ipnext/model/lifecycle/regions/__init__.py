"""Regions out of service and out of step: drains, repairs, and users that no region or another generation serves.

For workflows, activities, store and API. Begin with `drain` and `reconciliation`.
"""
