"""Parts of the workflows that carry a change out: preparation, waits, the transition's run, takeover, retirement.

Only workflows import it. Begin with `workflows.lifecycle`, which calls them in order.
"""
