"""Rules on a finished history. Pure: they start nothing and read no clock."""
