"""Compares a snapshot with what was made of it, on the same requests.

For `serving.splitting` and `serving.compiling`. Begin with `comparison`.
"""
