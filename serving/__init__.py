"""The data plane: hosts, router, protocol, export. Knows neither Temporal nor the store."""
