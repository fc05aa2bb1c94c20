"""Segments as separate programs, with the values that cross their boundaries packed into tensors.

For `serving.splitting`. Begin with `extract`.
"""
