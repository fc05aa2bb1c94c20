"""A real registry, Debian's `docker-registry`, pushes as `oras push` makes them, and signatures by `cosign`."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.real_servers import die_with_parent, free_ports
from tests.waiting import PATIENCE_SECONDS, until

NEEDS_REGISTRY = "needs docker-registry: apt-get install docker-registry"
NEEDS_COSIGN = "needs cosign: apt-get install cosign"
NEEDS_ORAS = "needs oras: apt-get install oras"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
FILE = "application/vnd.oci.image.layer.v1.tar"
HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
"""user, secret"""
BASIC = "Basic dXNlcjpzZWNyZXQ="


class RegistryServer:
    """docker-registry on one port of 127.0.0.1, with what its directory holds. Its end is a SIGKILL."""

    def __init__(self, directory: Path, *, auth: bool = False) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            pytest.skip(NEEDS_REGISTRY)
        (port,) = free_ports(1)
        self.host = f"127.0.0.1:{port}"
        self.base = f"http://{self.host}"
        self.authorization = BASIC if auth else ""
        directory.mkdir(exist_ok=True)
        config = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": {"addr": self.host},
        }
        if auth:
            (directory / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
        (directory / "config.yml").write_text(json.dumps(config))
        self._command = [program, "serve", str(directory / "config.yml")]
        self._log = directory / "log"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it on the same port; ready on return."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                env={"PATH": os.defpath},
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one call of prctl
            )
        until(self._answers, why=lambda: self._log.read_text(errors="replace")[-2000:])

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
        try:
            return httpx.get(f"{self.base}/v2/", trust_env=False, timeout=5).status_code in {200, 401}
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)

    close = kill

    def push(self, name: str, tag: str, files: Mapping[str, bytes], annotations: Mapping[str, str] = {}) -> str:
        """Push files with the requests of `oras push` 1.2.0, and return the digest of the manifest."""
        layers = [
            _descriptor(content, FILE) | {"annotations": {"org.opencontainers.image.title": path}}
            for path, content in files.items()
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": "application/vnd.unknown.artifact.v1",
            "config": _descriptor(b"{}", EMPTY) | {"data": "e30="},
            "layers": layers,
            "annotations": {"org.opencontainers.image.created": "2026-12-01T06:37:31Z", **annotations},
        }
        headers = {"Authorization": self.authorization} if self.authorization else {}
        with httpx.Client(trust_env=False, headers=headers, timeout=60) as http:
            for content in (b"{}", *files.values()):
                self._push_blob(http, name, content)
            content = json.dumps(manifest, separators=(",", ":")).encode()
            url = f"{self.base}/v2/{name}/manifests/{tag}"
            http.put(url, content=content, headers={"Content-Type": IMAGE}).raise_for_status()
        return _digest(content)

    def _push_blob(self, http: httpx.Client, name: str, content: bytes) -> None:
        base = f"{self.base}/v2/{name}/blobs/"
        if http.head(base + _digest(content)).status_code == 200:
            return
        begun = http.post(f"{base}uploads/").raise_for_status()
        place = httpx.URL(urljoin(base, begun.headers["location"])).copy_merge_params({"digest": _digest(content)})
        sent = {"Content-Type": "application/octet-stream"}
        http.put(place, content=content, headers=sent).raise_for_status()

    def push_by_oras(self, name: str, tag: str, directory: Path) -> None:
        """Push a directory's files by the unmodified `oras`."""
        program = shutil.which("oras")
        if program is None:
            pytest.skip(NEEDS_ORAS)
        files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        command = [program, "push", "--plain-http", f"{self.host}/{name}:{tag}", *files]
        subprocess.run(command, cwd=directory, check=True, capture_output=True, env={"HOME": str(directory.parent)})


class Cosign:
    """The unmodified `cosign`, and its key pair in a directory."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("cosign")
        if program is None:
            pytest.skip(NEEDS_COSIGN)
        self._program, self._directory = program, directory
        directory.mkdir()
        self._run("generate-key-pair")
        self.public = (directory / "cosign.pub").read_text()

    def sign(self, reference: str) -> None:
        self._run("sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "-y", reference)

    def bundle(self, reference: str, predicate_type: str) -> None:
        """Push a bundle with a statement, as cosign 3 signs; version 2 makes it by `attest`."""
        (self._directory / "predicate.json").write_text("{}")
        given = ("--predicate", "predicate.json", "--type", predicate_type, "--new-bundle-format")
        self._run(
            *("attest", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "-y"), *given, reference
        )

    def _run(self, *arguments: str) -> None:
        env = {"HOME": str(self._directory), "PATH": os.defpath, "COSIGN_PASSWORD": ""}
        done = subprocess.run(
            [self._program, *arguments], cwd=self._directory, env=env, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def running_registry(directory: Path, *, auth: bool = False) -> Iterator[RegistryServer]:
    """A registry in this directory; it ends with the block."""
    with closing(RegistryServer(directory, auth=auth)) as server:
        server.start()
        yield server


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(content: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}
