"""Source kind `oci`: snapshots that a tag of a repository in an OCI registry names, and their signatures.

For `ipnext.sources.kinds`. Begin with `kind`.
"""
