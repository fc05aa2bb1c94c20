"""How the platform's own processes prove themselves to each other: identities, certificates, Unix sockets, and who may call what."""
