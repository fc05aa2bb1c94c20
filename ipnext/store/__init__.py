"""The state store: sqlmodel on SQLite or PostgreSQL. No other package imports sqlmodel."""
