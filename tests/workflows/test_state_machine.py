"""The same world under hypothesis: what people ask for and what fails, in any order, shrunk to a short story."""

from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.workflows.simulation.specs import draw_scenario
from tests.workflows.simulation.world import World

ASKED = (
    "publish",
    "publish in a rush",
    "two owners at once",
    "rollback",
    "apply",
    "replan",
    "drain",
    "abort",
    "retire",
    "pause",
    "freeze",
    "lose a region",
)


class ChangesOfMind(RuleBasedStateMachine):
    """Every step is followed by a look at every model."""

    @initialize(seed=st.integers(0, 500))
    def begin(self, seed):
        scenario = draw_scenario(Random(f"scenario {seed}"), Random(f"swaps {seed}"))
        scenario.trouble = 0.0
        self.world = World(seed, scenario)
        self.models = sorted(scenario.models)
        self.last = dict.fromkeys(self.models, 0)

    @rule(kind=st.sampled_from(ASKED), number=st.integers(0, 3))
    def ask(self, kind, number):
        self.world.requests.ask(kind, self.models[number % len(self.models)])

    @rule(seconds=st.sampled_from([0.3, 2.0, 9.0, 60.0, 400.0]))
    def advance(self, seconds):
        self.world.clock.run(self.world.clock.now + seconds)

    @rule(number=st.integers(0, 5), seconds=st.sampled_from([5.0, 50.0, 500.0]))
    def partition(self, number, seconds):
        regions = sorted(self.world.infra.regions)
        region = self.world.infra.regions[regions[number % len(regions)]]
        region.away_until = max(region.away_until, self.world.clock.now + seconds)

    @precondition(lambda self: self.world.infra.hosts(lambda host: bool(host.ready)))
    @rule(number=st.integers(0, 60))
    def crash_a_host(self, number):
        hosts = self.world.infra.hosts(lambda host: bool(host.ready))
        hosts[number % len(hosts)].crash(self.world.clock.now + 8.0)

    @rule(trouble=st.sampled_from([0.0, 1.0, 5.0]))
    def workers_die(self, trouble):
        """From now on so many of the attempts are cut off or unheard."""
        self.world.faults.trouble = trouble

    @rule(number=st.integers(0, 3), kind=st.sampled_from(["load failure", "never ready", "bad answers", "invalid"]))
    def publish_a_bad_one(self, number, kind):
        model = self.models[number % len(self.models)]
        record = self.world.journal.records[model]
        self.world.faults.bad[model, max(record.generations, default=0) + 1] = kind
        self.world.requests.ask("publish", model)

    @invariant()
    def every_model_is_whole(self):
        for model in getattr(self, "models", ()):
            self.world.invariants.look(model, "between two rules", between=True)

    def teardown(self):
        if hasattr(self, "world"):
            self.world.settle()


ChangesOfMind.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestChangesOfMind = ChangesOfMind.TestCase
