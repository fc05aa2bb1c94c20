"""The repository: all queries, noun by noun. A unit of work creates and closes it."""

from ipnext.store.access.access_lists import AccessLists
from ipnext.store.access.audit import Audit
from ipnext.store.access.keys import Keys
from ipnext.store.access.owners import Owners
from ipnext.store.access.role_bindings import RoleBindings
from ipnext.store.changes.checks import Checks
from ipnext.store.changes.denied_uses import DeniedUses
from ipnext.store.changes.deployments import Deployments
from ipnext.store.changes.drains import Drains
from ipnext.store.changes.events import Journal
from ipnext.store.changes.freezes import Freezes
from ipnext.store.changes.history import History
from ipnext.store.changes.ownership import NamespaceOwner
from ipnext.store.changes.pauses import Pauses
from ipnext.store.changes.publications import Publications
from ipnext.store.changes.shadows import Shadows
from ipnext.store.changes.stages import StageProgresses
from ipnext.store.changes.transitions import Transitions
from ipnext.store.lists.lineages import Lineages
from ipnext.store.lists.overviews import Overviews
from ipnext.store.lists.pages import PagedLists
from ipnext.store.planning.replans import Replans
from ipnext.store.registry.derivations import Derivations
from ipnext.store.registry.retention import Retention
from ipnext.store.sources.versions import SourceVersions


class Repository(
    PagedLists,
    Publications,
    DeniedUses,
    SourceVersions,
    Replans,
    Transitions,
    Deployments,
    Freezes,
    Checks,
    History,
    Drains,
    Pauses,
    Shadows,
    StageProgresses,
    Journal,
    NamespaceOwner,
    Overviews,
    Lineages,
    Keys,
    RoleBindings,
    Derivations,
    Retention,
    Owners,
    AccessLists,
    Audit,
):
    """Reads and writes of one unit of work. It returns frozen records, never rows; it never commits.

    Valid only inside `with store.begin() as repository:`.
    """
