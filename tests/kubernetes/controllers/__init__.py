"""Controllers of the API server double: they run in its event loop. Entry point: `manager.ControllerManager`."""
