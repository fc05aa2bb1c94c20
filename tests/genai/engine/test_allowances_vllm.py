"""The allow lists name arguments and variables that the installed vLLM has, and it takes flags without a value."""

import json

import pytest

from ipnext.model.settings.engine import OWN_ARGUMENTS
from ipnext.model.settings.engine_allowances import ARGUMENTS, VARIABLES

pytestmark = pytest.mark.genai

LOOK = """
import json, sys
from vllm import envs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
known = {option: action.nargs == 0 for action in parser._actions for option in action.option_strings}
json.dump([known, list(envs.environment_variables)], open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def known(programs, tmp_path_factory):
    file = tmp_path_factory.mktemp("known") / "known.json"
    programs.run(LOOK, str(file))
    return json.loads(file.read_text())


def test_every_listed_argument_is_one_of_vllm_with_or_without_a_value(known):
    arguments, _ = known
    assert {name: arguments.get(name) for name in ARGUMENTS} == {name: p is None for name, p in ARGUMENTS.items()}
    assert set(OWN_ARGUMENTS) - {"--config", "--headless", "--lora-modules"} <= arguments.keys()


def test_every_listed_variable_of_vllm_is_one(known):
    _, variables = known
    assert {name for name in VARIABLES if name.startswith("VLLM_")} <= set(variables)
