"""Profiles for people: the curve, the throughput at a target, under which conditions."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age, number, rows
from ipnext.model.registry.profile import AtTarget, LatencyTarget, LoadStep, Profile, ProfileView
from ipnext.model.value import Value


class ProfileAnswer(Value):
    """What `ipnext profile` answers: the curve, the throughput at the target, what the platform made of it."""

    profile: Profile
    target: LatencyTarget
    found: AtTarget
    stored: ProfileView | None = None


def answer_tables(answer: ProfileAnswer) -> Iterable[Table | str]:
    """Tabulate the curve, then the one figure."""
    yield steps_table("", answer.profile.steps)
    yield f"\n{found_line(answer.found, answer.target)}"
    stored = answer.stored
    if stored is None:
        return
    where = (
        f"snapshot {stored.profile.snapshot} of {stored.profile.model}/{stored.profile.part} on "
        f"{stored.profile.hardware}"
    )
    plans = (
        (
            f"plans take {number(stored.found.rate(stored.unit))} {stored.unit} a replica from it (latencyTarget: "
            f"{stored.target})"
        )
        if stored.counts
        else "plans do not take it: the part's hardware has no profile: true, or a newer one counts"
    )
    yield f"kept with {where}; {plans}"
    if stored.replan_id:
        yield f"it asked for replan {stored.replan_id}"


def found_line(found: AtTarget, target: LatencyTarget) -> str:
    """Write the throughput at the target, or that it is not met, in one line."""
    rates = f"{number(found.tokens_per_second)} tokens/s, {number(found.requests_per_second)} requests/s"
    if not found.met:
        return f"target ({target}) not met at concurrency {found.concurrency:g}, the lowest measured: {rates} there"
    beyond = "" if found.bounded else "; the highest concurrency met the target too, more was not measured"
    return f"at the target ({target}): {rates} at concurrency {number(found.concurrency)}{beyond}"


HEADS = ("concurrency", "tokens/s", "requests/s", "TTFT p50 ms", "p99", "ITL p50 ms", "p99", "requests", "of others")


def steps_table(title: str, steps: Iterable[LoadStep]) -> Table:
    """One line for each concurrency."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    lines = (
        (
            step.concurrency,
            number(step.tokens_per_second),
            number(step.requests_per_second),
            ms(step.ttft_p50_ms),
            ms(step.ttft_p99_ms),
            ms(step.itl_p50_ms),
            ms(step.itl_p99_ms),
            step.requests,
            number(step.others_running),
        )
        for step in steps
    )
    return rows(title, HEADS, lines)


def profile_tables(views: Iterable[ProfileView]) -> Iterable[Table | str]:
    """Each profile of a snapshot: conditions, the figure, the curve."""
    for view in views:
        found, given = view.profile, view.profile.conditions
        counts = "plans take it" if view.counts else "plans do not take it"
        yield f"\nprofile on {found.hardware}, {age(found.measured_at)} old; {counts}"
        settings = " ".join(f"{key}={value}" for key, value in given.settings.items())
        lengths = f"prompts of {number(given.prompt_tokens)} tokens, answers of {given.output_tokens}"
        told = (given.engine_version, lengths, settings, given.replica or given.url, given.machine)
        yield "; ".join(text for text in told if text)
        yield found_line(view.found, view.target)
        yield steps_table("", found.steps)
