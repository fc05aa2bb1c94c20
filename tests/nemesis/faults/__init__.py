"""Which faults strike and when, and how each is carried out."""
