"""What every command is given: settings, and a client that is made when it is first needed."""

from dataclasses import dataclass
from typing import Any

import typer

from ipnext.client import Client
from ipnext.settings import ClientSettings


@dataclass(slots=True)
class Session:
    """One run of the command line."""

    settings: ClientSettings
    opened: Client | None = None

    def client(self) -> Client:
        """Return the client of the API."""
        if self.opened is None:
            settings = self.settings
            self.opened = Client(str(settings.api_url), settings.timeout_seconds, user=settings.user)
        return self.opened

    def close(self) -> None:
        """Close the client, if there is one."""
        if self.opened is not None:
            self.opened.close()


def session_of(context: typer.Context) -> Session:
    """Return the session of a command."""
    session: Session = context.obj
    return session


def client_of(context: typer.Context) -> Client:
    """Return the client of a command."""
    session: Any = context.obj
    client: Client = session.client()
    return client
