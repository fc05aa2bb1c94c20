"""The methods of `ipnext.client.Client`, one class for each noun of the API.

For `ipnext.client.client`, which joins the classes. None of them calls another.
"""
