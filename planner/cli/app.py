"""`ipnext plan`: problems, plans, explanations and transitions on files.

Mounted through the entry point `ipnext.commands`. Documents go to standard output or a file, tables for the user to
standard error. Exit status: 0 done and valid, 1 a plan or transition that breaks rules, 2 bad input (one line that
names the field), 3 infeasible or refused (the rules are named).
"""

import typer

from planner.cli import explain_commands as explanations
from planner.cli import generate_command as problems
from planner.cli import plan_commands as plans
from planner.cli import transition_commands as transitions

app = typer.Typer(
    name="plan",
    help="Plan where models run, ask why and what if, check plans, and walk from one to the next.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (problems, plans, explanations, transitions):
    for name, function in module.COMMANDS.items():
        app.command(name)(function)
