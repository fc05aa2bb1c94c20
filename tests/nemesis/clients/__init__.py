"""Who asks the platform during a run: clients of the gateways, and owners who change models and the fleet."""
