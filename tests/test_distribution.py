"""What a user installs: sdist -> wheel -> empty environment -> `ipnext --help`."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, subprocesses: None) -> Path:
    """Built as `python -m build` does by default: the wheel comes from the sdist, not from the tree."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert list(out.glob("*.tar.gz"))
    return next(out.glob("*.whl"))


def test_the_wheel_installs_into_an_empty_environment_and_the_cli_answers(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
        wheel,
        cwd=tmp_path,
    )
    text = run(tmp_path / "venv" / "bin" / "ipnext", "--help", cwd=tmp_path)
    for verb in ("apply", "publish", "rollback", "replan", "dev", "plan", "demo"):
        assert verb in text
    listing = run(python, "-m", "zipfile", "-l", wheel, cwd=tmp_path)
    for file in (
        "ipnext/temporal-dev.yaml",
        "ipnext/dev/fleet.yaml",
        "ipnext/api/web/index.html",
        "demo/movie-ranker.yaml",
    ):
        assert file in listing
    assert "tests/" not in listing
