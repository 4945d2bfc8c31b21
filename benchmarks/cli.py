"""pgsr-bench: measurements and their reports.

pgsr-bench throughput --out report
pgsr-bench training --out report
"""

from __future__ import annotations

import click

from pgsr.cli import Group, version_option

from .commands import quality, report, service, speed, trainings


@click.group(cls=Group)
@version_option
def main() -> None:
    """Measure this machine and these networks."""


for module in (speed, trainings, quality, service, report):
    for command in vars(module).values():
        if isinstance(command, click.Command):
            main.add_command(command)
