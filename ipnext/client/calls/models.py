"""Calls about models: their manifests, status, explanation and logs."""

from collections.abc import Callable, Iterable, Mapping
from uuid import uuid4

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, label_params, params_of
from ipnext.client.polling import glance, poll
from ipnext.errors import DeadlineExceeded
from ipnext.model.api.resources import ChangeView, ModelApplied, ModelView, StatusExplanation
from ipnext.model.deployment.logs import DEFAULT_LINES, LogsView, ReplicaLog
from ipnext.model.lifecycle.status import ConditionStatus, ConditionType
from ipnext.model.manifest.manifest import ModelManifest


class ModelCalls(Connection):
    """Models as applied, and their status."""

    def put_model(
        self, manifest: ModelManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> ModelApplied:
        """Create or replace a model's manifest. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        path, key = f"/v1/models/{manifest.name}", uuid4().hex
        return self._call("PUT", path, ModelApplied, body=manifest, params=params, key=key)

    def models(
        self,
        *,
        owner: str | None = None,
        ready: bool | None = None,
        search: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[ModelView]:
        """List models that are not retired, by name: of an owner, ready or not, with `search` in their name, or labels.

        As for every list, pages are read during the iteration; `limit` is the most items, None: all.
        """
        params = params_of(owner=owner, ready=ready, search=search) | label_params(labels)
        return self._list("/v1/models", ModelView, limit, after=after, **params)

    def model(self, name: str) -> ModelView:
        """Return one model with its status. Raises NotFound."""
        return self._get(f"/v1/models/{name}", ModelView)

    def delete(self, name: str) -> ChangeView:
        """Retire a model."""
        return self._call("DELETE", f"/v1/models/{name}", ChangeView)

    def explain(self, name: str) -> StatusExplanation:
        """Explain why a model is in its desired state, or not."""
        return self._get(f"/v1/models/{name}/explanation", StatusExplanation)

    def logs(
        self,
        name: str,
        part: str | None = None,
        *,
        region: str | None = None,
        replica: int | None = None,
        tail: int = DEFAULT_LINES,
        after: Iterable[ReplicaLog] = (),
    ) -> LogsView:
        """Return the output of a model's replicas, the last `tail` lines of each log; ended replicas included.

        `after` are logs of an earlier answer: then only later output is returned, of these and of others that run.
        Raises NotFound if there is no such model, part, region or log, or if the infrastructure keeps none.
        """
        params = dict(params_of(part=part, region=region, replica=replica, tail=tail))
        params |= {"after": [log.cursor for log in after]}
        return self._call("GET", f"/v1/models/{name}/logs", LogsView, params=params)

    def wait_ready(
        self,
        model: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ModelView], None] | None = None,
    ) -> ModelView:
        """Wait until the newest desired state of a model serves. DeadlineExceeded names the reason if it does not."""
        return self.wait_condition(model, ConditionType.READY, timeout_seconds=timeout_seconds, on_update=on_update)

    def wait_condition(
        self,
        model: str,
        kind: ConditionType,
        status: ConditionStatus = "True",
        *,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ModelView], None] | None = None,
    ) -> ModelView:
        """Wait until a condition of a model has a status.

        DeadlineExceeded names the conditions that are not true, and why.
        """
        last: ModelView | None = None
        for _ in poll(timeout_seconds):
            view = glance(lambda: self.model(model))
            if view is not None and view != last and on_update is not None:
                on_update(view)
            last = view or last
            if last is not None and last.status.is_met(kind, status):
                return last
        why = "; ".join(
            f"{c.type}: {c.reason} {c.message}" for c in (last.status.conditions if last else ()) if c.status != "True"
        )
        ready = (kind, status) == (ConditionType.READY, "True")
        what = "is not ready" if ready else f"has not {kind}={status}"
        msg = (
            f"model {model!r} {what} after {timeout_seconds:g} s ({why or 'nothing was published'}); "
            f"try `ipnext explain {model}`"
        )
        raise DeadlineExceeded(msg)
