"""The nemesis: real processes under faults, users who ask all the while, and a checker that reads what happened.

`README.md` says where to begin. It is a program beside the tests; nothing but the tests imports it.
"""
