"""`ipnext plan generate`: problems drawn from a seed, from loose to tight."""

from typing import Annotated

import typer

from planner.cli.output import Target, beside, exit_on_error, facts, write_document
from planner.generate.generate import generate


def generate_command(  # noqa: PLR0913 - one option for each figure of an instance
    *,
    models: Annotated[int, typer.Option(help="Models.")],
    regions: Annotated[int, typer.Option(help="Regions.")] = 20,
    hardware: Annotated[int, typer.Option(help="Hardware kinds.")] = 6,
    use: Annotated[
        float, typer.Option(help="Used part of the supply: 0.7 is loose, 0.98 tight, above 1 too little.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed and figures draw the same problem.")] = 0,
    current: Annotated[bool, typer.Option("--current", help="With a current placement and a cost of a move.")] = False,
    noise: Annotated[
        float, typer.Option(help="Demand drawn this part up or down after the supply, from 0 to 1.")
    ] = 0.0,
    output: Target = None,
) -> None:
    """Draw a problem from a seed: a fleet of any size, from loose to tight."""
    with exit_on_error():
        drawn = generate(
            models=models,
            regions=regions,
            hardware=hardware,
            supply_use=use,
            seed=seed,
            current=current,
            demand_noise=noise,
        )
        write_document(drawn, output)
        lines = [
            ("models", f"{len(drawn.models):,}"),
            ("parts", f"{sum(len(model.parts) for model in drawn.models):,}"),
            ("demand", f"{sum(demand.qps for model in drawn.models for demand in model.demand):,.6g} QPS"),
            (
                "supply",
                f"{sum(item.units for item in drawn.supply):,.6g} units, {len(drawn.supply)} region and hardware pairs",
            ),
            ("current", f"{sum(item.count for item in drawn.current.replicas):,} replicas"),
        ]
        beside(facts("problem", lines))


COMMANDS = {"generate": generate_command}
