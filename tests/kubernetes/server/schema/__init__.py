"""Which resources the API server double serves, and the schemas of their kinds. Entry point: `registry.Registry`."""
