"""Stages of changes that other distributions add: the port that they are written to, their kinds, and the order.

A stage's author begins with `ipnext.stages.port`. `ipnext.stages.composition` decides the order of a change's stages.
"""
