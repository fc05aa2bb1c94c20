"""What the region tells of its traffic while one router takes the place of another."""

from ipnext.infra.router.process import with_under_way
from ipnext.model.deployment.traffic import GenerationTraffic


def count(generation, *, requests=0, in_flight=0, model="m"):
    return GenerationTraffic(model=model, generation=generation, requests=requests, in_flight=in_flight)


def test_what_former_routers_still_work_on_counts_and_what_they_have_answered_does_not():
    now = (count(1, requests=7, in_flight=1), count(2, requests=3))
    former = (count(1, requests=90, in_flight=2), count(3, requests=5, in_flight=1), count(4, requests=8))
    assert with_under_way(now, (*former, count(1, in_flight=1))) == (
        count(1, requests=7, in_flight=4),
        count(2, requests=3),
        count(3, in_flight=1),
    )
