"""Lists by which regions check predictions, and the uses of API keys that regions report.

For the API, which runs both in the background, and `ipnext platform check`. Begin with `lists`.
"""
