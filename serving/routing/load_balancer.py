"""Load balancing over hosts: least calls in flight, with ejection of lost hosts and outliers.

A lost host is one whose connection ended or failed; it is ejected until there is a connection again. An outlier is a
host whose answers are late, wrong or missing while other hosts of the part give good ones. It is ejected for a while
and then half-open: it gets one call at a time until it has answered as the others do. Each ejection in a row lasts
twice as long.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Final, Literal

from serving.metrics.in_flight import InFlight
from serving.routing.sync_policy import CandidateTiers, HostCandidate

FIRST_SECONDS: Final = 1.0
"""Duration of a host's first ejection."""
LONGEST_SECONDS: Final = 16.0
SOUGHT_SECONDS: Final = 4.0
"""Longest pause between two attempts to reconnect to a lost host: an attempt costs no request, and little else."""
FORGIVEN_SECONDS: Final = 60.0
"""Time in service after which a host's next ejection has the first duration again."""
STRIKES: Final = 3
"""Calls in a row without a good answer that eject a host, if another host gives good ones."""
SLOW_FACTOR: Final = 5.0
SLOW_SECONDS: Final = 0.1
"""A host is slow whose mean latency is SLOW_FACTOR times the median of the others' and SLOW_SECONDS more."""
EARLY_FACTOR: Final = 2.0
"""Factor of the usual latency: a host that had less time is not blamed."""
ENOUGH_ANSWERS: Final = 5
"""Answers below which a mean latency is not judged."""
_NEWEST_WEIGHT: Final = 0.2

Standing = Literal["in", "behind", "lost"]


@dataclass(slots=True)
class _Host:
    in_flight: int = 0
    seconds: float = 0.0
    """Moving average of its answers' latency."""
    answers: int = 0
    """Answers since the last readmission."""
    strikes: int = 0
    out: Literal["behind", "lost"] | None = None
    until: float = 0.0
    times_out: int = 0
    readmitted_at: float = 0.0
    half_open: bool = False

    def eject(self, why: Literal["behind", "lost"], now: float) -> None:
        if self.out is None and now - self.readmitted_at > FORGIVEN_SECONDS:
            self.times_out = 0
        longest = SOUGHT_SECONDS if why == "lost" else LONGEST_SECONDS
        self.until = now + min(longest, FIRST_SECONDS * 2**self.times_out)
        self.times_out = min(self.times_out + 1, 10)
        self.out = why

    def readmit(self, now: float) -> None:
        """Readmit the host half-open, with its statistics reset."""
        self.out, self.half_open, self.readmitted_at = None, True, now
        self.seconds, self.answers, self.strikes = 0.0, 0, 0


class HostLoadBalancer:
    """Calls in flight and results of earlier calls per host, as seen by one router. No I/O.

    `on_ejected` receives the URL of an ejected host and the reason.
    """

    def __init__(
        self, clock: Callable[[], float], *, on_ejected: Callable[[str, Standing], None] = lambda *_: None
    ) -> None:
        self._clock = clock
        self._on_ejected = on_ejected
        self._hosts: dict[str, _Host] = {}
        self._watched: set[str] = set()
        """Hosts that are ejected or half-open."""
        self._turn = 0

    def choose(self, tiers: CandidateTiers, *, tried: Collection[str] = ()) -> HostCandidate:
        """Return the candidate for the next call, from the first tier that has an admitted host.

        `tried` are hosts that already failed for this request. They, and then lost hosts, are chosen only if no tier
        has another. At least one tier must have a candidate.
        """
        self._turn += 1
        if tried:
            untried = [[candidate for candidate in tier if candidate.url not in tried] for tier in tiers]
            if any(untried):
                return self._choose_host(untried)
        return self._choose_host(tiers)

    def calling(self, url: str) -> InFlight:
        """Count a call until it ends (a context manager)."""
        return InFlight(self._of(url))

    def busy(self, url: str) -> bool:
        """Whether a call to the host is in flight."""
        return url in self._hosts and self._hosts[url].in_flight > 0

    def standing(self, url: str) -> Standing:
        """Return the current standing of a host: in, behind or lost. An expired ejection ends here."""
        host = self._hosts.get(url)
        if host is None or host.out is None:
            return "in"
        if host.out == "behind" and host.until <= self._clock():
            host.readmit(self._clock())
            return "in"
        return host.out

    def note_answer(self, url: str, seconds: float, *, tiers: CandidateTiers) -> None:
        """Record a good answer and its latency. `tiers` are the candidates that the host was chosen from."""
        host = self._of(url)
        host.strikes = 0
        host.answers += 1
        host.seconds += (seconds - host.seconds) * (_NEWEST_WEIGHT if host.answers > 1 else 1.0)
        if host.seconds > SLOW_SECONDS and host.answers >= ENOUGH_ANSWERS and host.out is None:
            others = [other.seconds for other in self._others(url, tiers) if other.answers >= ENOUGH_ANSWERS]
            if others and host.seconds > SLOW_SECONDS + SLOW_FACTOR * median_low(others):
                self._eject(url, "behind")
                return
        if host.half_open and host.answers >= ENOUGH_ANSWERS and host.out is None:
            host.half_open = False
            self._watched.discard(url)

    def note_strike(self, url: str, *, tiers: CandidateTiers, given: float | None = None) -> None:
        """Record a missed deadline, or the answer of a broken host.

        If the call was `given` fewer seconds than twice the usual latency of the part's fastest host, it does not
        count.
        """
        host = self._of(url)
        if given is not None and given < EARLY_FACTOR * self._usual_seconds(url, tiers):
            return
        host.strikes += 1
        if host.out is None and (host.half_open or host.strikes >= STRIKES) and self._others_do_well(url, tiers):
            self._eject(url, "behind")

    def would_eject(self, url: str, *, tiers: CandidateTiers) -> bool:
        """Whether one more strike ejects the host."""
        host = self._of(url)
        strikes = host.half_open or host.strikes + 1 >= STRIKES
        return host.out is None and strikes and self._others_do_well(url, tiers)

    def acquit(self, url: str) -> None:
        """Forget a host's strikes: the requests are their cause."""
        self._of(url).strikes = 0

    def note_lost(self, url: str) -> None:
        """Record that a connection ended or failed. Calls that were lost together count once."""
        host = self._of(url)
        if host.out != "lost" or host.until <= self._clock():
            self._eject(url, "lost")

    def note_found(self, url: str) -> None:
        """Record that a host has a connection again."""
        host = self._of(url)
        if host.out == "lost":
            host.readmit(self._clock())

    def seconds_until_sought(self, url: str) -> float | None:
        """Return the seconds before the next attempt to reconnect to a lost host; None if it is not lost."""
        host = self._hosts.get(url)
        return max(0.0, host.until - self._clock()) if host is not None and host.out == "lost" else None

    def forget(self, urls: Collection[str]) -> None:
        """Discard all hosts but these and those with calls in flight.

        A host that returns later starts without history.
        """
        self._hosts = {url: host for url, host in self._hosts.items() if url in urls or host.in_flight}
        self._watched &= self._hosts.keys()

    def _of(self, url: str) -> _Host:
        host = self._hosts.get(url)
        if host is None:
            host = self._hosts[url] = _Host(readmitted_at=self._clock())
        return host

    def _choose_host(self, tiers: Sequence[Sequence[HostCandidate]]) -> HostCandidate:
        for tier in tiers:
            if found := self._standing_well(tier):
                return self._least_loaded(found)
        return self._least_loaded(next(tier for tier in tiers if tier))

    def _in_flight(self, candidate: HostCandidate) -> int:
        host = self._hosts.get(candidate.url)
        return 0 if host is None else host.in_flight

    def _least_loaded(self, candidates: Sequence[HostCandidate]) -> HostCandidate:
        if len(candidates) == 1:
            return candidates[0]
        loads = [self._in_flight(candidate) for candidate in candidates]
        least = min(loads)
        equals = [candidate for candidate, load in zip(candidates, loads, strict=True) if load == least]
        return equals[self._turn % len(equals)]

    def _standing_well(self, candidates: Sequence[HostCandidate]) -> Sequence[HostCandidate]:
        """Return the admitted hosts, and of the outliers the fastest ones.

        At most half of all hosts is left out.
        """
        if not self._watched or self._watched.isdisjoint(candidate.url for candidate in candidates):
            return candidates
        standing = [self._standing_of_call(candidate.url) for candidate in candidates]
        chosen = [candidate for candidate, one in zip(candidates, standing, strict=True) if one == "in"]
        behind = [candidate for candidate, one in zip(candidates, standing, strict=True) if one == "behind"]
        behind.sort(key=lambda candidate: self._hosts[candidate.url].seconds)
        kept = len(behind) - len(candidates) // 2
        if not chosen:
            kept = max(kept, 1)
        return [*chosen, *behind[: max(0, kept)]]

    def _standing_of_call(self, url: str) -> Standing:
        """Return the standing for a new call: a half-open host with a call in flight takes no other."""
        standing = self.standing(url)
        host = self._hosts.get(url)
        return "behind" if standing == "in" and host is not None and host.half_open and host.in_flight else standing

    def _others(self, url: str, tiers: CandidateTiers) -> Iterator[_Host]:
        urls = {candidate.url for tier in tiers for candidate in tier} - {url}
        return (host for other in urls if (host := self._hosts.get(other)) is not None and host.out is None)

    def _usual_seconds(self, url: str, tiers: CandidateTiers) -> float:
        """Return the mean latency of the part's fastest host; 0 if none has answered."""
        known = [host.seconds for host in (self._of(url), *self._others(url, tiers)) if host.answers]
        return min(known, default=0.0)

    def _others_do_well(self, url: str, tiers: CandidateTiers) -> bool:
        return any(other.answers and not other.strikes for other in self._others(url, tiers))

    def _eject(self, url: str, why: Literal["behind", "lost"]) -> None:
        self._hosts[url].eject(why, self._clock())
        self._watched.add(url)
        self._on_ejected(url, why)
