"""The command line `kdtvit-ray`. Heavy packages are imported by the commands that need them, so `--help` is instant."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kdtvit_ray.arguments import parser
from kdtvit_ray.errors import (
    EXIT_AWAY,
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER_ERROR,
    Away,
    RemoteFailed,
    StorageLost,
    UserError,
    first_line,
    no_permission,
)
from kdtvit_ray.paths import check_utf8, expanded, without_secrets
from kdtvit_ray.results.words import counted

if TYPE_CHECKING:
    from rich.console import Console

READ_ONLY = ("source", "images")
"""Arguments that name images, which may have any name; all others are read and written by libraries that take UTF-8."""
NOTES = 5
"""As many notes on a set are printed when it has been prepared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 some trials failed (`doctor`: something is red; `explain`: an
    image cannot be read), 2 a mistake of the user's, 70 an error of this program, 75 the cluster or the storage is
    away, 130 stopped."""
    parsed = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does: a letter that a terminal lacks ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_names(parsed)
        return COMMANDS[parsed.command](parsed)
    except UserError as error:
        print(f"kdtvit-ray: {error}", file=sys.stderr)
        return EXIT_AWAY if isinstance(error, Away) else EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nkdtvit-ray: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK
    except OSError as error:  # such as a full disk, or storage that is away
        print(f"kdtvit-ray: {first_line(error)}", file=sys.stderr)
        return EXIT_AWAY if isinstance(error, RemoteFailed | StorageLost) else EXIT_USER_ERROR
    except Exception:
        traceback.print_exc()
        return EXIT_BUG


def _check_names(parsed: argparse.Namespace) -> None:
    for name, value in vars(parsed).items():
        for each in value if isinstance(value, list) else [value]:
            if name not in READ_ONLY and isinstance(each, str):
                check_utf8(each)


def _console() -> "Console":
    from kdtvit_ray.console import Terminal

    return Terminal()


def _synth(asked: argparse.Namespace) -> int:
    from kdtvit_ray.console import Bar
    from kdtvit_ray.data.synthetic import synthesise

    console = _console()
    with Bar(console, "generating") as bar:
        count = synthesise(
            asked.out,
            patients=asked.patients,
            per_magnification=asked.images,
            size=asked.size,
            seed=asked.seed,
            census=asked.census,
            progress=bar.show,
        )
    console.print(f"{counted(count, 'image')} in {asked.out}")
    return EXIT_OK


def _prepare(asked: argparse.Namespace) -> int:
    from kdtvit_ray.console import Bar
    from kdtvit_ray.data.dataset import in_order
    from kdtvit_ray.data.prepare import prepare
    from kdtvit_ray.data.sources.files import shortened

    console = _console()
    with Bar(console, "preparing") as bar:
        prepared = prepare(
            asked.source,
            asked.out,
            size=asked.size,
            aspect=asked.aspect,
            pattern=asked.pattern,
            positive=asked.positive,
            progress=bar.show,
        )
    console.print(
        f"{counted(len(prepared.table), 'image')} prepared in {asked.out}, fingerprint {prepared.fingerprint[:12]}"
    )
    dataset = prepared.dataset
    first = dataset.first_positive
    console.print(
        f"{dataset.name}: {', '.join(f'{each}X' for each in dataset.magnifications)}; negative: "
        f"{', '.join(dataset.classes[:first])}; positive: {', '.join(dataset.classes[first:])}"
    )
    # patients that are none show in their names; BreakHis knows slides
    owner, word = ("slide", "slide") if dataset.census else ("id", "patient")
    names = in_order(set(prepared.table[owner]))
    console.print(f"{counted(len(names), word)}: {shortened(names, 5)}")
    notes = prepared.about["notes"]
    for note in notes[:NOTES]:
        console.print(note)
    if len(notes) > NOTES:
        console.print(f"{counted(len(notes) - NOTES, 'more note')}; 'kdtvit-ray check' lists them")
    differences = prepared.about["census_differences"]
    if len(differences) == 1:
        console.print(f"Official census: {differences[0]}")
    elif differences:
        console.print(f"{len(differences)} differences from the official census; 'kdtvit-ray check' lists them")
    return EXIT_OK


def _check(asked: argparse.Namespace) -> int:
    from kdtvit_ray.paths import PREPARED_ABOUT
    from kdtvit_ray.study import audit
    from kdtvit_ray.study.space import shipped_folder

    folder = expanded(asked.what)
    shipped = (shipped_folder() / f"{asked.what}.toml").is_file()  # `make demo` leaves a folder of that name behind
    if (folder / PREPARED_ABOUT).is_file() or (folder.is_dir() and not shipped):
        audit.check_data(asked.what, _console())
    else:
        audit.check_space(asked.what, asked.seconds, _console(), asked.data)
    return EXIT_OK


def _chain(asked: argparse.Namespace) -> int:
    from kdtvit_ray.study.local import run_local

    settings = {name: getattr(asked, name) for name in ("order", "temperature", "alpha", "student")}
    chosen = {name: value for name, value in settings.items() if value is not None}
    run_local(asked.space, asked.data, asked.trial, chosen, asked.seed, _console())
    return EXIT_OK


def _sweep(asked: argparse.Namespace) -> int:
    from kdtvit_ray.cluster.driver import sweep
    from kdtvit_ray.deliver.tracking import missing
    from kdtvit_ray.study.binding import bind, cold_note, hub_note, size_note
    from kdtvit_ray.study.space import load_space
    from kdtvit_ray.study.space_notes import notes

    console = _console()
    space = load_space(asked.space)
    for name in ("trials", "seed"):
        if getattr(asked, name) is not None:
            space.study[name] = getattr(asked, name)
    if note := hub_note(space):
        console.print(note, soft_wrap=True)
    bound = bind(space, asked.data)
    told = (size_note(space, bound.prepared), cold_note(space), *notes(space), *missing(space.study["track"]))
    for note in filter(None, told):
        console.print(note, soft_wrap=True)
    code = sweep(bound, _options(asked, asked.out), console)
    if code != EXIT_INTERRUPTED:
        _explain_test_images(asked.out, console)
    return _report_unless_stopped(asked.out, code, console)


def _explain_test_images(study: str, console: "Console") -> None:
    """Maps for the report. A sweep does not fail for want of them."""
    from kdtvit_ray.deliver.explain_study import explain_if_new

    try:
        explain_if_new(study)
    except Exception as error:  # torch's, captum's and the storage's kinds
        told = without_secrets(first_line(error))
        console.print(f"The report shows no maps of test images: {told}", soft_wrap=True)


def _confirm(asked: argparse.Namespace) -> int:
    from kdtvit_ray.cluster.driver import sweep
    from kdtvit_ray.study.replicates import replicates, searches

    console, code = _console(), EXIT_OK
    if asked.search:
        for bound, location in searches(asked.study, asked.data, asked.folds):
            console.print(f"The whole search again in outer fold {bound.space.data.fold}", soft_wrap=True)
            code = max(code, sweep(bound, _options(asked, location), console))
            if code == EXIT_INTERRUPTED:
                return code
            _publish(location, console)
        return _report_unless_stopped(asked.study, code, console)
    bound, asks = replicates(asked.study, asked.data, asked.top, asked.folds, asked.seeds)
    code = sweep(bound, _options(asked, asked.study), console, confirm=asks)
    return _report_unless_stopped(asked.study, code, console)


def _options(asked: argparse.Namespace, out: str) -> Any:
    from kdtvit_ray.cluster.options import Options
    from kdtvit_ray.paths import StudyFolder

    return Options(
        out=out,
        workers=asked.workers,
        groups=asked.groups,
        gpus_per_worker=asked.gpus_per_worker,
        address=asked.address,
        takeover=asked.takeover,
        stages=StudyFolder(asked.stages).location if asked.stages else "",  # workers run in folders of their own
        retry_failed=asked.retry_failed,
        retry=tuple(asked.retry),
    )


def _report_unless_stopped(study: str, code: int, console: "Console") -> int:
    if code == EXIT_INTERRUPTED:
        return code
    code = max(code, _write_report(study, console))
    _publish(study, console)
    return code


def _publish(study: str, console: "Console") -> None:
    """Publish a study where its [study] track says. That this fails changes no exit code: the study is as good."""
    from kdtvit_ray.cluster.targets import log_of
    from kdtvit_ray.cluster.tracking import publish_at_end
    from kdtvit_ray.paths import StudyFolder
    from kdtvit_ray.results.study_file import settings_of

    folder = StudyFolder(study)
    asked = settings_of(folder)["study"]
    for sentence in publish_at_end(study, asked["track"], log_of(folder, asked["name"])):
        console.print(sentence, soft_wrap=True)


def _doctor(asked: argparse.Namespace) -> int:
    from kdtvit_ray.cluster.doctor import doctor
    from kdtvit_ray.cluster.options import Options

    options = Options(
        out=asked.out,
        workers=asked.workers,
        groups=asked.groups,
        gpus_per_worker=asked.gpus_per_worker,
        address=asked.address,
    )
    return doctor(options, asked.data, asked.space, _console())


def _status(asked: argparse.Namespace) -> int:
    from kdtvit_ray.study.status import print_status

    print_status(asked.study, _console())
    return EXIT_OK


def _explain(asked: argparse.Namespace) -> int:
    from kdtvit_ray.deliver.commands import explain_images

    return explain_images(asked, _console())


def _gc(asked: argparse.Namespace) -> int:
    from kdtvit_ray.study.library import remove, unreachable

    console = _console()
    found = unreachable(asked.stages, asked.studies)
    for key, size in found.items():
        console.print(f"{key}  {size / 1e6:8.1f} MB", soft_wrap=True)
    told = (
        f"{counted(len(found), 'stage')}, {sum(found.values()) / 1e6:.1f} MB, that none of these studies has or needs"
    )
    if asked.delete:
        remove(asked.stages, found)
    done = "were deleted" if asked.delete else "would be deleted with --delete"
    console.print(f"{told}: {done}", soft_wrap=True)
    return EXIT_OK


def _export(asked: argparse.Namespace) -> int:
    from kdtvit_ray.deliver.commands import export_model

    return export_model(asked, _console())


def _predict(asked: argparse.Namespace) -> int:
    from kdtvit_ray.deliver.commands import predict_images

    return predict_images(asked, _console())


def _track(asked: argparse.Namespace) -> int:
    from kdtvit_ray.deliver.tracking import publish

    if asked.logdir and "tensorboard" not in asked.to:
        raise UserError(f"--logdir is a folder for TensorBoard's files, and --to is {' '.join(asked.to)}")
    for tracker in asked.to:
        _console().print(publish(asked.study, tracker, asked.logdir), soft_wrap=True)
    return EXIT_OK


def _report(asked: argparse.Namespace) -> int:
    return _write_report(asked.study, _console())


def _compare(asked: argparse.Namespace) -> int:
    from kdtvit_ray.report.build import compare

    notes, errors = compare(asked.studies, _console(), expanded(asked.out) if asked.out else None)
    for error in errors:
        print(f"kdtvit-ray: {error}", file=sys.stderr)
    return max(
        [EXIT_USER_ERROR if errors else EXIT_OK, *(_warn_of_damage(study, found) for study, found in notes.items())]
    )


def _write_report(study: str, console: "Console") -> int:
    from kdtvit_ray.report.build import print_headline, write_report
    from kdtvit_ray.results.findings import Findings
    from kdtvit_ray.results.study import load

    unwritten: str | None = None
    with console.status("writing the report"):
        findings = Findings(load(study))
        try:
            write_report(findings)
        except OSError as error:
            if not no_permission(error):
                raise
            unwritten = os.strerror(error.errno or 0)
    print_headline(findings, console)
    code = _warn_of_damage(study, findings.study.notes)
    if unwritten is None:
        return code
    place = findings.study.folder.shown
    print(
        f"kdtvit-ray: The report cannot be written to '{place}': {unwritten}; copy the study to a folder of your own",
        file=sys.stderr,
    )
    return EXIT_USER_ERROR


def _warn_of_damage(study: str, notes: Sequence[str]) -> int:
    """Say what of a study could not be read, after all that could; the exit code."""
    if not notes:
        return EXIT_OK
    more = f" (and {len(notes) - 1} more, all listed in its report under 'Protocol and data')" if notes[1:] else ""
    shown = without_secrets(study)
    print(f"kdtvit-ray: The study '{shown}' was read in part: {notes[0]}{more}", file=sys.stderr)
    return EXIT_USER_ERROR


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "synth": _synth,
    "prepare": _prepare,
    "check": _check,
    "chain": _chain,
    "sweep": _sweep,
    "confirm": _confirm,
    "doctor": _doctor,
    "status": _status,
    "explain": _explain,
    "gc": _gc,
    "track": _track,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "predict": _predict,
}
"""What each command of `arguments.parser` does; the exit code."""
