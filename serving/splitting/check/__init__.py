"""Comparison of a snapshot with the snapshots derived from it, on the same requests.

For `serving.splitting` and `serving.compiling`. Begin with `comparison`.
"""
