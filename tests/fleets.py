"""The fleet of most tests: two regions, 76 ms apart, with processors."""


def two_regions(east: int = 40, west: int | None = 40, *, east_cost: float = 1.0, west_cost: float = 1.1) -> str:
    """Its manifest, with so many units in each region at a cost for each.

    No supply at all in the west if that is None.
    """
    supply = [f"    - {{region: us-east, hardware: cpu, units: {east}, unitCost: {east_cost}}}\n"]
    if west is not None:
        supply.append(f"    - {{region: eu-west, hardware: cpu, units: {west}, unitCost: {west_cost}}}\n")
    return _HEAD + "".join(supply)


_HEAD = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 76], [76, 1]]
  hardware: [cpu]
  supply:
"""
