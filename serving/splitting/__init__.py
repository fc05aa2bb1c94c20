"""Cuts a snapshot into parts by a policy: the program is cut, not the class, so the snapshot's directory is enough."""
