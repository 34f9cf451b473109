"""Publishing a study where people look: its trials, stages and report as runs of MLflow, W&B or TensorBoard.

publish("studies/demo", "mlflow")                         all that is new since the last time
python -m kdtvit_ray.deliver.tracking studies/demo mlflow     the same, for a process that watches: the last line of
                                                          stdout tells how it went, and stderr has the details

It reads the study's folder alone and needs neither torch nor Ray. One process at a time may publish a study to one
tracker.
"""

import importlib.util
import logging
import sys
from collections.abc import Iterable

from kdtvit_ray.deliver.published import publication
from kdtvit_ray.deliver.trackers import PACKAGES, TRACKERS
from kdtvit_ray.errors import EXIT_OK, EXIT_USER_ERROR, UserError, first_line
from kdtvit_ray.paths import without_secrets
from kdtvit_ray.results.study import load

log = logging.getLogger(__name__)

LONGEST = 50
"""words of a tracker's error."""


def publish(location: str, tracker: str, logdir: str = "") -> str:
    """Publish what a tracker of `TRACKERS` lacks of the study at `location`, a path or a URI; says what was done, in
    one line. `logdir` is another folder for TensorBoard's files. Raises `UserError` where the tracker's package is
    missing, and where the tracker fails."""
    for sentence in missing([tracker]):
        raise UserError(sentence)
    found = publication(load(location))
    try:
        changed = TRACKERS[tracker](found, logdir)
    except Exception as error:  # whatever the packages and their servers raise
        log.info("Publishing to %s failed", tracker, exc_info=True)
        raise UserError(
            f"Publishing '{found.folder.shown}' to {tracker} failed: {without_secrets(_reason(error))}"
        ) from error
    return f"Published to {tracker}: {changed} of {len(found.runs)} runs were new or had changed"


def _reason(error: Exception) -> str:
    """What an exception says, in one line: packages that check their settings name the wrong one in the second."""
    return " ".join(str(error).split()[:LONGEST]) or first_line(error)


def missing(trackers: Iterable[str]) -> list[str]:
    """A sentence for each of these trackers whose package is not installed."""
    found = []
    for tracker in trackers:
        module, package = PACKAGES[tracker]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # W&B leaves a folder of its own name behind, which is no package
            found.append(f"Publishing to {tracker} needs a package that is not installed: pip install {package}")
    return found


def main(location: str, tracker: str) -> int:
    logging.basicConfig(level=logging.INFO)
    try:
        print(publish(location, tracker))
    except UserError as error:
        print(error)
        return EXIT_USER_ERROR
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
