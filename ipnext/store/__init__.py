"""The system of record: sqlmodel on SQLite or PostgreSQL. Nobody else imports sqlmodel."""
