"""Lighter imports of vLLM: a module of the environment of tests.genai.support.forking_vllm, of standard library only.

Each interpreter of that environment imports it first. Of what it changes, a tiny model on a CPU that runs eagerly uses
nothing; it is a third of the processor time of vLLM's imports.

- vLLM imports torch's compiler to patch it, and has helper functions compiled. Here the module `UNUSED` is missing as
  long as vLLM looks for it, and such functions run as they are.
- transformers reads the sources of all its models, thousands, to learn their names. Here it finds those that an import
  found before, which `python -m` of this module keeps beside it.
- pydantic builds a validator of each class of messages. Here it builds one once it is used.
"""

import importlib.machinery
import os
import pickle
import sys

NAMES = os.path.splitext(__file__)[0] + ".names"  # noqa: PTH122 - pathlib takes its time to import
UNUSED = "torch._inductor.lowering"


class Changes:
    """Finds modules as others do; by name, a function changes one as soon as it is imported."""

    def __init__(self, changes):
        self._changes = changes

    def find_spec(self, fullname, path, target=None):
        change = self._changes.pop(fullname, None)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            change(module)

        spec.loader.exec_module = run_and_change
        return spec


class Names:
    """By module path and prefix, what transformers asks for; pickled, since it changes what it gets."""

    def __init__(self):
        self.found = {}

    def change(self, import_utils):
        look = import_utils.define_import_structure
        if os.path.exists(NAMES):  # noqa: PTH110
            with open(NAMES, "rb") as file:  # noqa: PTH123
                self.found = pickle.load(file)

        def define_import_structure(module_path, prefix=None):
            asked = (str(module_path), prefix)
            if asked not in self.found:
                self.found[asked] = pickle.dumps(look(module_path, prefix))
            return pickle.loads(self.found[asked])

        import_utils.define_import_structure = define_import_structure

    def keep(self):
        with open(NAMES, "wb") as file:  # noqa: PTH123
            pickle.dump(self.found, file)


def build_late(config):
    config.config_defaults["defer_build"] = True


def begin(names):
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    sys.modules[UNUSED] = None
    changes = {
        "vllm.env_override": lambda _: sys.modules.pop(UNUSED),
        "transformers.utils.import_utils": names.change,
        "pydantic._internal._config": build_late,
    }
    sys.meta_path.insert(0, Changes(changes))


if __name__ == "__main__":
    kept = Names()
    begin(kept)
    import transformers.models  # noqa: F401

    kept.keep()
else:
    begin(Names())
