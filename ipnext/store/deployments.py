"""What the infrastructure is told: deployments and route tables."""

from collections.abc import Mapping

from sqlmodel import delete, select

from ipnext.errors import StaleWrite
from ipnext.model.deployment import Deployment, DeploymentKey, RouteTable
from ipnext.model.wire import decode
from ipnext.store.tables import DeploymentRow, RouteRow
from ipnext.store.unit import Unit, document


class Deployments(Unit):
    """The wanted state: written before the infrastructure is told, so that it can be told again."""

    def put_deployment(self, deployment: Deployment) -> Deployment:
        """Create or replace the wanted state of one replica set. NotFound for an unknown model."""
        self._writing_model(deployment.key.model)
        row = self._session.get(DeploymentRow, _identity(deployment.key))
        if row is None:
            row = DeploymentRow(**deployment.key.model_dump(), replicas=0, units=0.0, deployment="")
        row.replicas, row.units, row.deployment = deployment.replicas, deployment.units, document(deployment)
        self._add(row)
        return deployment

    def delete_deployment(self, key: DeploymentKey) -> None:
        """Forget a replica set; one that is not there is no error."""
        self._writing(key.model)
        row = self._session.get(DeploymentRow, _identity(key))
        if row is not None:
            self._session.delete(row)
            self._session.flush()

    def deployments(self, model: str | None = None) -> tuple[Deployment, ...]:
        """The wanted replica sets of a model, or of all, by key."""
        query = select(DeploymentRow.deployment)
        if model is not None:
            query = query.where(DeploymentRow.model == model)
        found = [decode(Deployment, text) for text in self._session.exec(query)]
        return tuple(sorted(found, key=lambda deployment: _identity(deployment.key)))

    def deployment(self, key: DeploymentKey) -> Deployment | None:
        """The wanted state of one replica set, if there is one."""
        row = self._session.get(DeploymentRow, _identity(key))
        return None if row is None else decode(Deployment, row.deployment)

    def deployment_documents(self, region: str) -> Mapping[DeploymentKey, str]:
        """The replica sets of a region as JSON: who knows a document already need not parse it."""
        query = select(DeploymentRow).where(DeploymentRow.region == region)
        return {
            DeploymentKey(model=row.model, part=row.part, region=row.region, hardware=row.hardware): row.deployment
            for row in self._session.exec(query)
        }

    def route_revisions(self, region: str) -> Mapping[str, int]:
        """Model -> revision of its table in a region."""
        query = select(RouteRow.model, RouteRow.revision).where(RouteRow.region == region)
        return dict(self._session.exec(query).all())

    def put_route(self, table: RouteTable) -> RouteTable:
        """Replace the route table of a model in a region. Returns the one that holds. NotFound for an unknown model.

        StaleWrite where its revision is not later than the stored one; the same content again changes nothing.
        """
        self._writing_model(table.model)
        row = self._session.get(RouteRow, (table.model, table.region))
        if row is not None and table.revision <= row.revision:
            stored = decode(RouteTable, row.route_table)
            if (stored.shares, stored.served) == (table.shares, table.served):
                return stored
            msg = (
                f"routes of {table.model!r} in {table.region!r} are at revision {row.revision}, "
                f"the write brings {table.revision}; read them again, then write a later one"
            )
            raise StaleWrite(msg)
        if row is None:
            row = RouteRow(model=table.model, region=table.region, revision=0, route_table="")
        row.revision, row.route_table = table.revision, document(table)
        self._add(row)
        return table

    def route(self, model: str, region: str) -> RouteTable | None:
        """The route table of a model in a region, if there is one."""
        row = self._session.get(RouteRow, (model, region))
        return None if row is None else decode(RouteTable, row.route_table)

    def routes(self, model: str | None = None) -> tuple[RouteTable, ...]:
        """The route tables of a model, or of all, by model and region."""
        query = select(RouteRow.route_table)
        if model is not None:
            query = query.where(RouteRow.model == model)
        found = [decode(RouteTable, text) for text in self._session.exec(query)]
        return tuple(sorted(found, key=lambda table: (table.model, table.region)))

    def delete_routes(self, model: str) -> None:
        """Forget all route tables of a model."""
        self._writing(model)
        self._session.exec(delete(RouteRow).where(RouteRow.model == model))  # type: ignore[arg-type]


def _identity(key: DeploymentKey) -> tuple[str, str, str, str]:
    return (key.model, key.part, key.region, key.hardware)
