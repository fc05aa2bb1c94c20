"""Source kind `mlflow`: versions of a registered model of an MLflow server, and its webhooks.

For `ipnext.sources.kinds`; the API checks `webhooks`. Begin with `kind`.
"""
