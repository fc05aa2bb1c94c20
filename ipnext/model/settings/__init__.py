"""Settings of a part, by engine: written in its manifest, checked there and again by the host that runs the engine.

For manifests, the registry and hosts. Begin with `engine`; `engine_allowances` lists what a manifest may pass to vLLM.
"""
