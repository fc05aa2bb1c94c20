"""Times of live replicas of a new generation, before its first traffic: the check `live-latency`.

For `activities.transition.activities`. Begin with `timing`.
"""
