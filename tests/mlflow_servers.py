"""Servers of MLflow for tests: a real one in a process of its own, and one in memory that answers as it does.

What the real one answers was seen of MLflow 3.17: neither an alias nor a tag changes `last_updated_timestamp`, and only
the search of registered models shows aliases. Tests of behaviour run on both.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.real_servers import die_with_parent, free_ports
from tests.waiting import until

API, ARTIFACTS = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
PYTHON_VARIABLE = "IPNEXT_MLFLOW_PYTHON"
NEEDS_MLFLOW = "needs an MLflow server: make setup-mlflow"
USER = "someone-who-trains"


class Unread(httpx.MockTransport):
    """Answers whose bodies were not read yet, as those of a network."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)


class Mlflow:
    """Hands of a training system on a server. `transport` counts the requests of a source in `requests`."""

    uri: str

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.transport: httpx.BaseTransport = Unread(self._count)

    def send(self, request: httpx.Request) -> httpx.Response:
        """Answer a request, uncounted."""
        raise NotImplementedError

    def _count(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        return self.send(request)

    def take_requests(self) -> list[str]:
        """The requests since the last call."""
        taken, self.requests = self.requests, []
        return taken

    def write(self, path: str, body: Mapping[str, Any], method: str = "POST") -> Any:
        return self._answer(httpx.Request(method, f"{self.uri}{API}{path}", json=dict(body)))

    def read(self, path: str, **query: str) -> Any:
        return self._answer(httpx.Request("GET", f"{self.uri}{API}{path}", params=query))

    def _answer(self, request: httpx.Request) -> Any:
        answer = self.send(request)
        answer.request = request
        answer.read()
        answer.raise_for_status()
        return answer.json()

    def create_model(self, name: str) -> None:
        self.write("registered-models/create", {"name": name})

    def delete_model(self, name: str) -> None:
        self.write("registered-models/delete", {"name": name}, "DELETE")

    def create_experiment(self, name: str) -> str:
        found: str = self.write("experiments/create", {"name": name})["experiment_id"]
        return found

    def create_run(self, experiment: str, *, end_time: int = 1_700_000_000_000, **metrics: float) -> str:
        tags = [{"key": "mlflow.source.git.commit", "value": "c0ffee"}, {"key": "mlflow.user", "value": USER}]
        body = {"experiment_id": experiment, "user_id": USER, "start_time": 1, "run_name": "nightly", "tags": tags}
        run: str = self.write("runs/create", body)["run"]["info"]["run_id"]
        for name, value in metrics.items():
            self.log_metric(run, name, value)
        self.write("runs/update", {"run_id": run, "status": "FINISHED", "end_time": end_time})
        return run

    def log_metric(self, run: str, name: str, value: Any) -> None:
        self.write("runs/log-metric", {"run_id": run, "key": name, "value": value, "timestamp": 5})

    def create_version(self, model: str, *, run: str = "", source: str = "s3://bucket/x", **tags: str) -> str:
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"name": model, "source": source, "run_id": run, "tags": pairs}
        version: str = self.write("model-versions/create", body)["model_version"]["version"]
        return version

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.write("registered-models/alias", {"name": model, "alias": alias, "version": version})

    def set_tag(self, model: str, version: str, key: str, value: str) -> None:
        self.write("model-versions/set-tag", {"name": model, "version": version, "key": key, "value": value})

    def upload(self, path: str, directory: Path) -> None:
        for file in sorted(each for each in directory.rglob("*") if each.is_file()):
            url = f"{self.uri}{ARTIFACTS}/{path}/{file.relative_to(directory).as_posix()}"
            answer = self.send(httpx.Request("PUT", url, content=file.read_bytes()))
            answer.read()
            assert answer.status_code == 200, answer.text


class MemoryMlflow(Mlflow):
    """A server in memory."""

    uri = "http://localhost:5000"

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self._clock = itertools.count(1_796_000_000_000)
        self._ids = itertools.count(1)

    def send(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith(ARTIFACTS):
            return self._answer_artifacts(request, path.removeprefix(ARTIFACTS).strip("/"))
        name = f"_{path.removeprefix(API).replace('/', '_').replace('-', '_')}"
        given = json.loads(request.content) if request.method != "GET" else dict(request.url.params)
        try:
            return httpx.Response(200, json=getattr(self, name)(given))
        except KeyError as error:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(error)})

    def _answer_artifacts(self, request: httpx.Request, path: str) -> httpx.Response:
        if request.method == "PUT":
            self.files[path] = request.content
            return httpx.Response(200, json={})
        if not path:
            return httpx.Response(200, json={"files": self._listed(request.url.params["path"])})
        if path not in self.files:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        return httpx.Response(200, content=self.files[path])

    def _listed(self, below: str) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.files.items():
            if path.startswith(f"{below}/"):
                name, slash, _ = path.removeprefix(f"{below}/").partition("/")
                more = {} if slash or not content else {"file_size": len(content)}
                found[name] = {"path": name, "is_dir": bool(slash), **more}
        return list(found.values())

    def _registered_models_create(self, given: dict[str, Any]) -> dict[str, Any]:
        now = next(self._clock)
        model = {"name": given["name"], "creation_timestamp": now, "last_updated_timestamp": now}
        self.models[given["name"]] = model | {"versions": {}, "aliases": {}}
        return {"registered_model": model}

    def _registered_models_delete(self, given: dict[str, Any]) -> dict[str, Any]:
        del self.models[given["name"]]
        return {}

    def _registered_models_alias(self, given: dict[str, Any]) -> dict[str, Any]:
        self.models[given["name"]]["aliases"][given["alias"]] = given["version"]
        return {}

    def _registered_models_search(self, given: dict[str, Any]) -> dict[str, Any]:
        names = re.findall(r"'([^']*)'", given.get("filter", ""))
        found = [model for name, model in sorted(self.models.items()) if not names or name in names]
        return {"registered_models": [self._shown(model) for model in found]}

    @staticmethod
    def _shown(model: dict[str, Any]) -> dict[str, Any]:
        aliases = [{"alias": alias, "version": version} for alias, version in model["aliases"].items()]
        latest = list(model["versions"].values())[-1:]
        plain = {key: value for key, value in model.items() if key not in {"versions", "aliases"}}
        return plain | ({"aliases": aliases} if aliases else {}) | ({"latest_versions": latest} if latest else {})

    def _model_versions_create(self, given: dict[str, Any]) -> dict[str, Any]:
        versions = self.models[given["name"]]["versions"]
        number, now = str(len(versions) + 1), next(self._clock)
        times = {"creation_timestamp": now, "last_updated_timestamp": now}
        versions[number] = {**given, "version": number, **times, "current_stage": "None", "status": "READY"}
        return {"model_version": versions[number]}

    def _model_versions_set_tag(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self.models[given["name"]]["versions"][given["version"]]
        kept = [tag for tag in version["tags"] if tag["key"] != given["key"]]
        version["tags"] = [*kept, {"key": given["key"], "value": given["value"]}]
        return {}

    def _model_versions_get(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"model_version": self.models[given["name"]]["versions"][given["version"]]}

    def _model_versions_get_download_uri(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"artifact_uri": self._model_versions_get(given)["model_version"]["source"]}

    def _model_versions_search(self, given: dict[str, Any]) -> dict[str, Any]:
        names = re.findall(r"""['"]([^'"]*)['"]""", given.get("filter", ""))
        after = re.search(r"version_number > (\d+)", given.get("filter", ""))
        found = [
            version
            for model in self.models.values()
            for version in model["versions"].values()
            if (not names or model["name"] in names) and (after is None or int(version["version"]) > int(after[1]))
        ]
        found.sort(key=lambda version: version["last_updated_timestamp"], reverse="DESC" in given["order_by"])
        most = int(given["max_results"])
        more = {"next_page_token": "more"} if len(found) > most else {}
        return {"model_versions": found[:most], **more}

    def _experiments_create(self, given: dict[str, Any]) -> dict[str, Any]:
        experiment = str(next(self._ids))
        self.experiments[experiment] = given["name"]
        return {"experiment_id": experiment}

    def _experiments_get(self, given: dict[str, Any]) -> dict[str, Any]:
        return {
            "experiment": {"experiment_id": given["experiment_id"], "name": self.experiments[given["experiment_id"]]}
        }

    def _runs_create(self, given: dict[str, Any]) -> dict[str, Any]:
        run = f"run{next(self._ids):029}"
        info = {key: given[key] for key in ("experiment_id", "user_id", "start_time", "run_name")}
        info |= {"run_id": run, "artifact_uri": f"mlflow-artifacts:/{given['experiment_id']}/{run}/artifacts"}
        self.runs[run] = {"info": info, "data": {"metrics": [], "tags": given["tags"]}}
        return {"run": self.runs[run]}

    def _runs_update(self, given: dict[str, Any]) -> dict[str, Any]:
        self.runs[given["run_id"]]["info"]["end_time"] = given["end_time"]
        return {}

    def _runs_log_metric(self, given: dict[str, Any]) -> dict[str, Any]:
        metrics = self.runs[given["run_id"]]["data"]["metrics"]
        metrics[:] = [each for each in metrics if each["key"] != given["key"]]
        metrics.append({"key": given["key"], "value": given["value"]})
        return {}

    def _runs_get(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"run": self.runs[given["run_id"]]}

    def _runs_search(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = re.findall(r"'([^']*)'", given["filter"])
        found = [run for run in self.runs.values() if run["info"]["run_id"] in asked]
        return {"runs": [run for run in found if run["info"]["experiment_id"] in given["experiment_ids"]]}


class RealMlflow(Mlflow):
    """`mlflow server` with SQLite and files below a directory. Its end, as every kill, is a SIGKILL by process id."""

    def __init__(self, python: str, directory: Path) -> None:
        super().__init__()
        self.directory, self._python = directory, python
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        self._http = httpx.HTTPTransport()
        self._process: subprocess.Popen | None = None

    def send(self, request: httpx.Request) -> httpx.Response:
        return self._http.handle_request(request)

    def close(self) -> None:
        """Close the connections to it."""
        self._http.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [self._python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2]]
        command += ["--workers", "1", "--serve-artifacts", "--artifacts-destination", str(self.directory / "artifacts")]
        command += ["--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=os.environ | quiet,
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - as in real_servers
            )
        until(self._answers, why=lambda: log.read_text()[-2000:], every_seconds=0.2)

    def kill(self) -> None:
        """Kill all its processes, and wait for their end."""
        if self._process is None:
            return
        first = psutil.Process(self._process.pid)
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            process.kill()
        self._process.wait()
        psutil.wait_procs(processes[1:])
        self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "server.log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.uri}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def mlflow_python() -> str:
    """The interpreter that has MLflow: IPNEXT_MLFLOW_PYTHON, else that of `make setup-mlflow`. Skips without one."""
    found = os.environ.get(PYTHON_VARIABLE) or f"{sys.prefix}-mlflow/bin/python"
    if not os.access(found, os.X_OK):
        pytest.skip(NEEDS_MLFLOW)
    return found


@contextmanager
def running_mlflow(directory: Path) -> Iterator[RealMlflow]:
    """A real server; it ends with the block."""
    server = RealMlflow(mlflow_python(), directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server.close()
