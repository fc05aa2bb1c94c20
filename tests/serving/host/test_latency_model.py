"""What passes cost, from those that ran."""

from serving.host.latency_model import Costs


def test_nothing_is_predicted_before_a_pass_ran():
    assert Costs().predict(1) is None


def test_a_batch_costs_what_one_of_its_size_did():
    costs = Costs()
    costs.note(64, 0.002)
    assert costs.predict(64) == costs.predict(100) == 0.002


def test_a_smaller_batch_costs_at_most_what_a_larger_one_did():
    costs = Costs()
    costs.note(64, 0.002)
    assert costs.predict(1) == 0.002


def test_a_larger_batch_costs_more_in_proportion():
    costs = Costs()
    costs.note(64, 0.002)
    assert costs.predict(128) == 0.004


def test_the_newest_passes_count_most_and_one_stall_little():
    costs = Costs()
    costs.note(1, 0.001)
    costs.note(1, 10.0)
    assert costs.predict(1) < 0.002
    for _ in range(40):
        costs.note(1, 0.004)
    assert 0.0035 < costs.predict(1) < 0.0045
