"""What a session whose trials have all ended mends of a study's rows and records: every value is in the records of
stages, too."""

import logging
from collections.abc import Iterator

from kdtvit_ray.errors import UserError
from kdtvit_ray.results.rows import keys_of, keys_of_trials, read_trials, set_aside, write_rows
from kdtvit_ray.results.words import counted
from kdtvit_ray.study.ledger import Ledger
from kdtvit_ray.study.stage_results import trial_rows
from kdtvit_ray.study.store import DamagedStage

_ASIDE = "A damaged file was set aside as"
log = logging.getLogger(__name__)


def mend_rows(ledger: Ledger) -> Iterator[str]:
    """Write the rows that were lost anew, and set the damaged files aside of which every trial is there again. Yields
    sentences on what was done. Rows of stages that are lost as well stay lost, and a damaged file of them stays where
    it is. Raises `OSError` where storage fails."""
    folder, there = ledger.folder, keys_of_trials(ledger.folder)
    written, lost = 0, False
    for record in read_trials(folder).itertuples(index=False):
        if there.get(record.trial, set()) == set(record.stages):
            continue
        try:
            rows = trial_rows(ledger.name, record.trial, [ledger.stages.record(key) for key in record.stages])
        except (DamagedStage, UserError) as error:
            log.warning("The rows of trial %s are lost: %s", record.trial, error)
            lost = True
            continue
        if keys_of(rows).get(record.trial, set()) != there.get(record.trial, set()):
            write_rows(folder, record.trial, rows)
            written += 1
    if written:
        yield f"The rows of {counted(written, 'trial')} were lost or damaged and were written anew from their stages."
    for name in set_aside(folder, folder.trials):
        yield f"{_ASIDE} {name}: the study has its trials again; replicates that were in it are run again by confirm."
    for name in [] if lost else set_aside(folder, folder.rows):
        yield f"{_ASIDE} {name}: the study has its rows again."
