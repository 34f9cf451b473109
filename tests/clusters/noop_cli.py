"""`kdtvit-ray` as the scripts of clusters/ call it, read by the real command line, with stages that cost nothing: what
`--data` and SPACE name is not looked at. Other commands than `sweep` are the real ones."""

import sys
from dataclasses import replace

from rich.console import Console

from kdtvit_ray import cli
from kdtvit_ray.arguments import parser
from kdtvit_ray.cluster.driver import sweep
from kdtvit_ray.errors import EXIT_USER_ERROR, UserError
from tests.cluster.noop import NoopWorker
from tests.study import made_stages


def main() -> int:
    asked = parser().parse_args()
    if asked.command != "sweep":
        return cli.main()
    study = {"trials": asked.trials or 3, "lag": 4, "seed": 3, "baselines": ["joint"]}
    options = replace(cli._options(asked, asked.out), worker=NoopWorker, checkpoint_seconds=0.0)
    try:
        return sweep(made_stages.bound(made_stages.space(**study)), options, Console(width=100))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    raise SystemExit(main())
