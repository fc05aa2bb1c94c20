"""Desired state of the infrastructure: deployments and route tables."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import and_, bindparam, insert
from sqlalchemy import delete as sa_delete
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, delete, func, select, tuple_

from ipnext.errors import StaleWrite
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.registry.denials import Denial
from ipnext.model.wire import decode_frozen
from ipnext.store.registry.denials import Denials
from ipnext.store.registry.servings import Servings
from ipnext.store.tables.changes import DeploymentRow, RouteRow, RouteShareRow
from ipnext.store.tables.registry import ModelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, document

DEPLOYMENTS = METADATA.tables[DeploymentRow.__tablename__]
ROUTES = METADATA.tables[RouteRow.__tablename__]
SHARES = METADATA.tables[RouteShareRow.__tablename__]

_DEPLOYMENTS = sa_select(DEPLOYMENTS.c.deployment)
_ROUTES = sa_select(ROUTES.c.route_table)
_DEPLOYMENTS_OF = _DEPLOYMENTS.where(DEPLOYMENTS.c.model == bindparam("model"))
_SAME = and_(*(DEPLOYMENTS.c[name] == bindparam(f"of_{name}") for name in DeploymentKey.model_fields))
_DEPLOYMENT_IS = sa_update(DEPLOYMENTS).where(_SAME)
_NO_DEPLOYMENT = sa_delete(DEPLOYMENTS).where(_SAME)
_NEW_DEPLOYMENT = insert(DEPLOYMENTS)
_SAME_ROUTE = (ROUTES.c.model == bindparam("of_model")) & (ROUTES.c.region == bindparam("of_region"))
_ROUTE = _ROUTES.where(_SAME_ROUTE)
_ROUTE_IS = sa_update(ROUTES).where(_SAME_ROUTE)
_NEW_ROUTE = insert(ROUTES)
_NO_SHARES = sa_delete(SHARES).where(SHARES.c.model == bindparam("of_model"), SHARES.c.region == bindparam("of_region"))
_NEW_SHARES = insert(SHARES)
_ROUTES_OF = _ROUTES.where(ROUTES.c.model == bindparam("model"))


class Deployments(Servings, Denials):
    """The desired state: written before it is sent to the infrastructure, so that it can be sent again."""

    def put_deployment(self, deployment: Deployment) -> Deployment:
        """Create or replace the desired state of one replica set. NotFound if the model is unknown.

        It is stored, and returned, with the denials of this moment: facts that it was built from may be older.
        """
        self._writing(deployment.key.model)
        deployment = with_denials(deployment, self.denied_snapshots(deployment.key.model))
        key = dict(deployment.key)
        of = {f"of_{name}": value for name, value in key.items()}
        said = {"replicas": deployment.replicas, "units": deployment.units, "deployment": document(deployment)}
        if not self._write(_DEPLOYMENT_IS, **of, **said):
            self._check_known(deployment.key.model)
            self._write(_NEW_DEPLOYMENT, **key, **said)
        return deployment

    def tell_denials(self, model: str) -> None:
        """Write into a model's replica sets which snapshots no host may load: regions follow in the next pass."""
        denied = self.denied_snapshots(model)
        for wanted in self.deployments(model):
            if with_denials(wanted, denied) != wanted:
                self.put_deployment(wanted)

    def delete_deployment(self, key: DeploymentKey) -> None:
        """Delete a replica set; a missing one is no error."""
        self._writing(key.model)
        self._write(_NO_DEPLOYMENT, **{f"of_{name}": value for name, value in dict(key).items()})

    def deployments(self, model: str | None = None) -> tuple[Deployment, ...]:
        """Return the desired replica sets of a model, or of all, by key."""
        if model is None:
            return _deployments(self._run(_DEPLOYMENTS).scalars())
        return self._once(
            ("deployments", model), lambda: _deployments(self._run(_DEPLOYMENTS_OF, model=model).scalars())
        )

    def deployment(self, key: DeploymentKey) -> Deployment | None:
        """Return the desired state of one replica set, if there is one."""
        query = _DEPLOYMENTS.where(_SAME)
        text = self._run(query, **{f"of_{name}": value for name, value in dict(key).items()}).scalar()
        return None if text is None else decode_frozen(Deployment, text)

    def deployment_documents(self, region: str) -> Mapping[DeploymentKey, str]:
        """Return the replica sets of a region as JSON: callers that already know a document need not parse it."""
        query = select(DeploymentRow).where(DeploymentRow.region == region)
        return {
            DeploymentKey(model=row.model, part=row.part, region=row.region, hardware=row.hardware): row.deployment
            for row in self._session.exec(query)
        }

    def route_revisions(self, region: str) -> Mapping[str, int]:
        """Map each model to the revision of its table in a region."""
        query = select(RouteRow.model, RouteRow.revision).where(RouteRow.region == region)
        return dict(self._session.exec(query).all())

    def refusing_revisions(self, region: str) -> Mapping[str, int]:
        """Map each model without a serving generation to the revision of a table.

        By this table a region's gateway refuses the model's users.
        """
        query = select(RouteRow.model, RouteRow.revision).join(ModelRow, col(ModelRow.name) == col(RouteRow.model))
        query = query.where(
            RouteRow.region == region, col(RouteRow.refuses), col(ModelRow.serving_generation).is_(None)
        )
        return dict(self._session.exec(query).all())

    def put_route(self, table: RouteTable) -> RouteTable:
        """Replace the route table of a model in a region. Returns the stored one. NotFound if the model is unknown.

        StaleWrite if its revision is not later than the stored one; the same content again changes nothing.
        """
        self._writing(table.model)
        stored = self.route(table.model, table.region)
        if stored is not None and not _is_later(table, stored):
            return stored
        of = {"of_model": table.model, "of_region": table.region}
        if stored is None:
            self._check_known(table.model)
            self._write(_NEW_ROUTE, **_route_columns(table))
        else:
            self._write(_ROUTE_IS, **of, **_route_content(table))
        if stored is None or stored.shares != table.shares:
            self._write(_NO_SHARES, **of)
            if shares := _share_rows(table):
                self._connection.execute(_NEW_SHARES, shares)
        if table.answering != (frozenset() if stored is None else stored.answering):
            self._note_routes([table])
        return table

    def put_routes(self, tables: Collection[RouteTable]) -> None:
        """Replace the route tables of many models, each as in `put_route`, in a constant number of statements.

        StaleWrite, and nothing is written, if the revision of any is not later than the stored one and its content
        differs.
        """
        for model in {table.model for table in tables}:
            self._writing(model)
        revisions = self.revisions_of({table.model for table in tables})
        new = [
            table
            for table in tables
            if table.revision > revisions.get((table.model, table.region), -1)
            or _is_later(table, self.route(table.model, table.region))
        ]
        answered = self._answering_generations({(table.model, table.region) for table in new})
        connection = self._connection
        for some in batches({(table.model, table.region) for table in new}):
            for row in (RouteShareRow, RouteRow):
                connection.execute(delete(row).where(tuple_(col(row.model), col(row.region)).in_(some)))
        if new:
            connection.execute(insert(RouteRow), [_route_columns(table) for table in new])
        shares = [row for table in new for row in _share_rows(table)]
        if shares:
            connection.execute(insert(RouteShareRow), shares)
        self._forget_read()
        self._note_routes([each for each in new if each.answering != answered.get((each.model, each.region), set())])

    def _answering_generations(self, places: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], set[int]]:
        """Map (model, region) to the generations that answer the region's users by the stored table."""
        found: dict[tuple[str, str], set[int]] = {}
        of = RouteShareRow
        for some in batches(places):
            query = select(of.model, of.region, of.generation).where(tuple_(col(of.model), col(of.region)).in_(some))
            for model, region, generation in self._session.exec(query.where(of.fraction > 0)):
                found.setdefault((model, region), set()).add(generation)
        return found

    def revisions_of(self, models: Collection[str]) -> Mapping[tuple[str, str], int]:
        """Map (model, region) to the revision of the route table, for all tables of these models."""
        query = select(RouteRow.model, RouteRow.region, RouteRow.revision)
        found = (
            row
            for some in batches(models)
            for row in self._session.exec(query.where(self._among(col(RouteRow.model), some)))
        )
        return {(model, region): revision for model, region, revision in found}

    def route(self, model: str, region: str) -> RouteTable | None:
        """Return the route table of a model in a region, if there is one."""
        text = self._run(_ROUTE, of_model=model, of_region=region).scalar()
        return None if text is None else decode_frozen(RouteTable, text)

    def routes(self, model: str | None = None) -> tuple[RouteTable, ...]:
        """Return the route tables of a model, or of all, by model and region."""
        if model is None:
            return _tables(self._run(_ROUTES).scalars())
        return self._once(("routes", model), lambda: _tables(self._run(_ROUTES_OF, model=model).scalars()))

    def deployments_in(self, region: str) -> tuple[Deployment, ...]:
        """Return the desired replica sets of a region, by key."""
        found = self._session.exec(select(DeploymentRow.deployment).where(DeploymentRow.region == region))
        return tuple(sorted((decode_frozen(Deployment, text) for text in found), key=lambda d: _identity(d.key)))

    def models_routed_in(self, region: str) -> tuple[str, ...]:
        """Return the models for which a region's gateway has a table, by name."""
        return tuple(sorted(self._session.exec(select(RouteRow.model).where(RouteRow.region == region))))

    def shares_to(self, region: str) -> tuple[tuple[str, str, float], ...]:
        """Return (model, users' region, fraction of their requests) for all traffic to a region.

        The order is by model and users' region.
        """
        query = select(RouteShareRow.model, RouteShareRow.region, func.sum(RouteShareRow.fraction))
        query = query.where(RouteShareRow.to == region, RouteShareRow.fraction > 0)
        found = self._session.exec(query.group_by(RouteShareRow.model, RouteShareRow.region))
        return tuple(sorted((model, origin, fraction) for model, origin, fraction in found))

    def delete_routes(self, model: str, region: str | None = None) -> None:
        """Delete the route table of a model in a region, or in every one."""
        self._writing(model)
        for table in (RouteShareRow, RouteRow):
            query = delete(table).where(col(table.model) == model)
            self._session.exec(query if region is None else query.where(col(table.region) == region))
        self._delete_servings(model, region)


def _deployments(documents: Iterable[str]) -> tuple[Deployment, ...]:
    found = (decode_frozen(Deployment, text) for text in documents)
    return tuple(sorted(found, key=lambda deployment: _identity(deployment.key)))


def _tables(documents: Iterable[str]) -> tuple[RouteTable, ...]:
    found = (decode_frozen(RouteTable, text) for text in documents)
    return tuple(sorted(found, key=lambda table: (table.model, table.region)))


def _identity(key: DeploymentKey) -> tuple[str, str, str, str]:
    return (key.model, key.part, key.region, key.hardware)


def _is_later(table: RouteTable, stored: RouteTable | None) -> bool:
    """Return whether a table replaces the stored one.

    False if the stored one, at its revision or later, has the same content. Raises StaleWrite.
    """
    if stored is None or table.revision > stored.revision:
        return True
    if (stored.shares, stored.served) == (table.shares, table.served):
        return False
    msg = (
        f"routes of {table.model!r} in {table.region!r} are at revision {stored.revision}, "
        f"the write brings {table.revision}; read them again, then write a later one"
    )
    raise StaleWrite(msg)


def _route_columns(table: RouteTable) -> dict[str, Any]:
    return {
        "model": table.model,
        "region": table.region,
        **_route_content(table),
    }


def _route_content(table: RouteTable) -> dict[str, Any]:
    sends = any(share.fraction > 0 for share in table.shares)
    return {
        "revision": table.revision,
        "refuses": table.refuses,
        "sends": sends,
        "route_table": document(table),
    }


def _share_rows(table: RouteTable) -> list[dict[str, Any]]:
    """Return the shares as columns; shares of one destination and generation are one row."""
    fractions: dict[tuple[str, int], float] = {}
    for share in table.shares:
        to = (share.to, share.generation)
        fractions[to] = fractions.get(to, 0.0) + share.fraction
    named = {"model": table.model, "region": table.region}
    return [
        {**named, "to": to, "generation": generation, "fraction": fraction}
        for (to, generation), fraction in sorted(fractions.items())
    ]


def with_denials(deployment: Deployment, denied: Mapping[tuple[str, int], Denial]) -> Deployment:
    """Return a replica set that says which of its snapshots are denied, by (part, number)."""
    found = (denied.get((held.part or deployment.key.part, held.snapshot)) for held in deployment.holds)
    texts = tuple("" if denial is None else denial.text for denial in found)
    if texts == tuple(held.denied for held in deployment.holds):
        return deployment
    holds = (held.model_copy(update={"denied": text}) for held, text in zip(deployment.holds, texts, strict=True))
    return deployment.model_copy(update={"holds": tuple(holds)})
