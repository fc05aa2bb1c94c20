"""Segments as programs of their own, with what crosses their borders packed into tensors.

For `serving.splitting`. Begin with `extract`.
"""
