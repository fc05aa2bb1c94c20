"""Single items of `ipnext platform check`; tests/workflows/test_platform_setup.py has the whole, with a server."""

from ipnext.platform.checks import _artifacts
from ipnext.settings import PlatformSettings


def test_an_artifact_store_without_its_directory_is_missing(tmp_path):
    settings = PlatformSettings(artifacts_uri=f"file://{tmp_path}/artifacts")
    found = _artifacts(settings)
    assert (found.state, found.detail) == ("missing", f"no directory {tmp_path}/artifacts")
    assert "IPNEXT_ARTIFACTS_URI" in found.todo
    (tmp_path / "artifacts").mkdir()
    assert _artifacts(settings).state == "ok"


def test_an_artifact_store_that_is_a_file_is_missing(tmp_path):
    (tmp_path / "artifacts").write_text("")
    assert _artifacts(PlatformSettings(artifacts_uri=f"file://{tmp_path}/artifacts")).state == "missing"
