"""The program of a snapshot as the splitter sees it: values, operations, shapes, views.

For all of `serving.splitting`; imports none of it. Begin with `program`.
"""
