"""ResourceQuotas: which pods a namespace has no room for."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.server.errors import Json, forbidden


def check_quotas(quotas: list[Json], pods: list[Json], new: Json) -> None:
    """ApiFailure 403 if a new pod goes beyond a quota of its namespace."""
    used: Counter[str] = Counter()
    for pod in pods:
        if pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            used.update(_counted(pod))
    wanted = _counted(new)
    for quota in quotas:
        hard = {
            name: parse_quantity(str(each)) or Decimal() for name, each in (quota["spec"].get("hard") or {}).items()
        }
        beyond = [name for name, most in sorted(hard.items()) if name in wanted and used[name] + wanted[name] > most]
        if beyond:
            raise forbidden(_message(quota, new, beyond, (wanted, used, hard)))


def _message(quota: Json, pod: Json, names: list[str], figures: tuple[Mapping[str, object], ...]) -> str:
    told = (",".join(f"{name}={each[name]}" for name in names) for each in figures)
    words = ", ".join(f"{word}: {text}" for word, text in zip(("requested", "used", "limited"), told, strict=True))
    return f'pods "{pod["metadata"]["name"]}" is forbidden: exceeded quota: {quota["metadata"]["name"]}, {words}'


def _counted(pod: Json) -> Counter[str]:
    """Return what a pod takes, under the names that quotas use."""
    total: Counter[str] = Counter({"pods": 1, "count/pods": 1})
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        for kind, given in (("requests", {**limits, **(resources.get("requests") or {})}), ("limits", limits)):
            amounts = {name: parse_quantity(str(each)) or Decimal() for name, each in given.items()}
            total.update({f"{kind}.{name}": each for name, each in amounts.items()})
            if kind == "requests":
                total.update({name: each for name, each in amounts.items() if name in {"cpu", "memory"}})
    return total
