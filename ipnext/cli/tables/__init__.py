"""Tables and graphs in which commands show values.

For the commands; `ipnext split` uses `graph_view`. Begin with `layouts`.
"""
