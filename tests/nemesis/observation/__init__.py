"""What is looked at during a run and at its end: regions, processes, the store and Temporal."""
