"""Stages of other distributions: what they are given, and the record of what they answer.

Begin with `activities`.
"""
