"""What is shown of a region beside its replicas."""


async def test_a_region_whose_router_goes_by_an_old_access_list_is_shown(world):
    world.rooms.infrastructure.leave_access_behind("eu", 42.0)
    regions = (await world.http.get("/v1/regions")).json()["items"]
    assert {region["region"]: region["access_behind_seconds"] for region in regions} == {"eu": 42.0, "us": None}
    text = (await world.http.get("/metrics")).text
    for region, seconds in (("eu", "42.0"), ("us", "0.0")):
        assert f'ipnext_region_access_list_behind_seconds{{region="{region}"}} {seconds}' in text
