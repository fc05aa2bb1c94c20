"""The splitter's view of a snapshot's program: values, operations, shapes, views.

For all of `serving.splitting`; imports none of it. Begin with `program`.
"""
