"""Volumes of pods, as directories of the node."""
