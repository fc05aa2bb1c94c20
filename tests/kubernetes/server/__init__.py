"""The API server double: Kubernetes' REST API over HTTP, kept in memory. Entry point: `server.ApiServer`."""
