"""Authentication between the platform's processes: identities, certificates, Unix sockets, and the allowed callers of each route."""
