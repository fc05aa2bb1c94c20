"""Commands against a live server."""

import pytest
from typer.testing import CliRunner

from ipnext.cli import app


@pytest.fixture
def run(live, monkeypatch):
    """Run a command against the live server."""
    monkeypatch.setenv("IPNEXT_API_URL", live.url)

    def run(*arguments, status=0, **options):
        result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
        assert result.exit_code == status, result.output
        return result

    return run
