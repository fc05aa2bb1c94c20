"""Status, explanation and checks of models, from facts of the store and reports of the regions.

For the routes and metrics. Knows neither requests nor sessions. Begin with `status` and `explanation`.
"""
