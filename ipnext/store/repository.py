"""The repository: all queries, noun by noun. A unit of work creates and closes it."""

from ipnext.store.access_lists import AccessLists
from ipnext.store.audit import Audit
from ipnext.store.belonging import Belonging
from ipnext.store.deployments import Deployments
from ipnext.store.drains import Drains
from ipnext.store.freezes import Freezes
from ipnext.store.journal import Journal
from ipnext.store.keys import Keys
from ipnext.store.listing import Listing
from ipnext.store.overviews import Overviews
from ipnext.store.owners import Owners
from ipnext.store.pauses import Pauses
from ipnext.store.publishing import Publishing
from ipnext.store.replans import Replans
from ipnext.store.role_bindings import RoleBindings
from ipnext.store.transitions import Transitions


class Repository(
    Listing,
    Publishing,
    Replans,
    Transitions,
    Deployments,
    Freezes,
    Drains,
    Pauses,
    Journal,
    Belonging,
    Overviews,
    Keys,
    RoleBindings,
    Owners,
    AccessLists,
    Audit,
):
    """Reads and writes of one unit of work. It returns frozen records, never rows; it never commits.

    Valid only inside `with store.begin() as repository:`.
    """
