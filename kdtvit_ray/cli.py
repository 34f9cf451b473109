"""The command line `kdtvit-ray`. Heavy packages are imported by the commands that need them, so `--help` is instant."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtvit_ray import __version__
from kdtvit_ray.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, UserError, first_line
from kdtvit_ray.paths import without_secrets

if TYPE_CHECKING:
    from rich.console import Console

NOTES = 5
"""As many notes on a set are printed when it has been prepared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 some trials failed, 2 a mistake of the user's, 130 stopped."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except UserError as error:
        print(f"kdtvit-ray: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nkdtvit-ray: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK
    except OSError as error:  # a full disk, storage that is away: nothing of ours is wrong
        print(f"kdtvit-ray: {first_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdtvit-ray",
        description="Studies of sequential knowledge distillation over magnifications, on Ray.",
        epilog="Example: kdtvit-ray sweep demo --data data/synthetic --out studies/demo",
    )
    parser.add_argument("--version", action="version", version=f"kdtvit-ray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, words: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words, epilog=f"Example: kdtvit-ray {example}")
        made.set_defaults(run=run)
        return made

    synth = command("synth", _synth, "Generate a synthetic four-magnification set with official names.",
                    "synth data/images --patients 40")  # fmt: skip
    synth.add_argument("out", metavar="OUT", help="folder for the images")
    synth.add_argument("--patients", type=_count, default=40, help="number of patients (default 40)")
    synth.add_argument("--images", type=_count, default=6, help="images per patient and magnification (default 6)")
    synth.add_argument("--size", type=_size, default=(700, 460), metavar="WxH", help="pixels (default 700x460)")
    synth.add_argument("--seed", type=int, default=0, help="another seed gives another set")
    synth.add_argument("--census", action="store_true", help="the full census: 7,909 images under the official names")

    prepare = command("prepare", _prepare, "Decode a set of images once, for all sweeps: BreakHis, or another set.",
                      "prepare BreaKHis_v1.tar.gz data/prepared")  # fmt: skip
    prepare.add_argument(
        "source",
        metavar="SOURCE",
        help="BreakHis: its folder or its .tar.gz; a table (.csv) with the columns path, label, magnification, patient "
        "and, where there are such, slide, subtype, fold; or a folder of magnification/class/patient/*.png",
    )
    prepare.add_argument("out", metavar="OUT", help="folder for the prepared set")
    prepare.add_argument(
        "--positive",
        type=_words,
        default=[],
        metavar="LABEL[,LABEL...]",
        help="the labels that count as positive (not needed for BreakHis, benign/malignant and 0/1)",
    )
    prepare.add_argument(
        "--pattern",
        default="",
        help="how the paths of a folder are named, such as '{magnification}x/{label}/{patient}_{rest}.png'",
    )
    prepare.add_argument("--size", type=_count, default=256, help="side of the stored square in pixels (default 256)")
    prepare.add_argument("--aspect", choices=("crop", "squash"), default="crop",
                         help="how an image becomes a square: its centre, or squashed (default crop)")  # fmt: skip

    check = command("check", _check, "Audit a prepared set, or dry-run a space: its stages, what is shared, the cost.",
                    "check demo")  # fmt: skip
    check.add_argument("what", metavar="DATA|SPACE", help="a prepared folder, a space file or a shipped space")
    check.add_argument("--data", default="", help="a prepared set: what can a study of this space on it show?")
    check.add_argument("--seconds", type=float, default=0.0, metavar="S", help="seconds per stage, to tell the cost")

    chain = command("chain", _chain, "Run one chain in this process, without Ray.",
                    "chain demo --data data/prepared --order '400>200>100>40' --temperature 4")  # fmt: skip
    chain.add_argument("space", metavar="SPACE|STUDY", help="a space file, a shipped space, or a study's folder")
    chain.add_argument("--data", required=True, help="the prepared set")
    chain.add_argument("--trial", default="", help="the chain of this trial of the study, or a baseline's name")
    chain.add_argument("--order", help="such as 40>100>200>400")
    chain.add_argument("--temperature", type=float)
    chain.add_argument("--alpha", type=float, help="weight of the distillation term, 0 to 1")
    chain.add_argument("--student", help="a model of the space, or a size")
    chain.add_argument("--seed", type=int)

    sweep = command("sweep", _sweep, "Run a study on this machine or on a Ray cluster, or go on with it.",
                    "sweep demo --data data/prepared --out studies/demo --trials 20")  # fmt: skip
    sweep.add_argument("space", metavar="SPACE", help="a space file or a shipped space")
    sweep.add_argument("--data", required=True, help="the prepared set")
    sweep.add_argument("--out", required=True, metavar="STUDY", help="the study's folder, or a URI such as s3://...")
    sweep.add_argument("--trials", type=_count, help="number of searched trials (default: the space's)")
    sweep.add_argument("--seed", type=int, help="seed of search and training (default: the space's)")
    _resources(sweep)

    confirm = command("confirm", _confirm, "Train a study's best trials and its baselines again over folds and seeds.",
                      "confirm studies/demo --top 3 --folds 1-5 --seeds 3")  # fmt: skip
    confirm.add_argument("study", metavar="STUDY", help="the folder of a study whose sweep has run")
    confirm.add_argument("--data", default="", help="the prepared set (default: the study's)")
    confirm.add_argument("--top", type=_count, default=3, help="how many of the best trials (default 3)")
    confirm.add_argument("--folds", type=_folds, default=[1], metavar="1-5", help="folds, such as 1-5 or 1,3")
    confirm.add_argument("--seeds", type=_count, default=3, help="training seeds at each fold (default 3)")
    _resources(confirm)

    status = command("status", _status, "Say how a study is going, from any machine that sees its folder.",
                     "status studies/demo")  # fmt: skip
    status.add_argument("study", metavar="STUDY")

    report = command("report", _report, "Print a study's tables and write its report.", "report studies/demo")
    report.add_argument("study", metavar="STUDY")

    compare = command("compare", _compare, "Put several studies side by side.", "compare studies/a studies/b")
    compare.add_argument("studies", metavar="STUDY", nargs="+")
    compare.add_argument("--out", metavar="FILE", help="also write it to a .csv, .tex, .md or .html file")
    return parser


def _resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, default=1, help="workers in a group that train together (default 1)")
    parser.add_argument("--groups", type=_groups, default=0, metavar="N|auto",
                        help="worker groups (default auto: as many as the cluster has room for)")  # fmt: skip
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        default=-1.0,
        metavar="G",
        help="share of a GPU for each worker, such as 1 or 0.25 (default: 1 where there are GPUs)",
    )
    parser.add_argument("--address", default="", help="a running Ray cluster, such as auto or HOST:6379")
    parser.add_argument("--takeover", action="store_true", help="take the study over from a driver that is dead")


def _console() -> "Console":
    from kdtvit_ray.console import Terminal

    return Terminal(highlight=False)


def _synth(asked: argparse.Namespace) -> int:
    from kdtvit_ray.data.synthetic import synthesise

    console = _console()
    with _Bar(console, "generating") as bar:
        count = synthesise(
            Path(asked.out), patients=asked.patients, per_magnification=asked.images, size=asked.size, seed=asked.seed,
            census=asked.census, progress=bar.show,
        )  # fmt: skip
    console.print(f"{count} images in {asked.out}")
    return EXIT_OK


def _prepare(asked: argparse.Namespace) -> int:
    from kdtvit_ray.data.prepare import prepare

    console = _console()
    with _Bar(console, "preparing") as bar:
        prepared = prepare(
            Path(asked.source),
            Path(asked.out),
            size=asked.size,
            aspect=asked.aspect,
            pattern=asked.pattern,
            positive=asked.positive,
            progress=bar.show,
        )
    console.print(f"{len(prepared.table)} images prepared in {asked.out}, fingerprint {prepared.fingerprint[:12]}")
    dataset = prepared.dataset
    first = dataset.first_positive
    console.print(
        f"{dataset.name}: {', '.join(f'{each}X' for each in dataset.magnifications)}; negative: "
        f"{', '.join(dataset.classes[:first])}; positive: {', '.join(dataset.classes[first:])}"
    )
    notes = prepared.about.get("notes", [])
    for note in notes[:NOTES]:
        console.print(note)
    if len(notes) > NOTES:
        console.print(f"{len(notes) - NOTES} more notes; 'kdtvit-ray check' lists them")
    differences = prepared.about.get("census_differences", [])
    if differences:
        console.print(f"{len(differences)} differences from the official census; 'kdtvit-ray check' lists them")
    return EXIT_OK


def _check(asked: argparse.Namespace) -> int:
    from kdtvit_ray.paths import PREPARED_ABOUT
    from kdtvit_ray.study import audit

    if (Path(asked.what) / PREPARED_ABOUT).is_file() or Path(asked.what).is_dir():
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
    from kdtvit_ray.study.binding import bind, size_note
    from kdtvit_ray.study.space import load_space

    console = _console()
    space = load_space(asked.space)
    for name in ("trials", "seed"):
        if getattr(asked, name) is not None:
            space.study[name] = getattr(asked, name)
    bound = bind(space, asked.data)
    for note in filter(None, (size_note(space, bound.prepared), space.trials_note())):
        console.print(note)
    return _report_unless_stopped(asked.out, sweep(bound, _options(asked, asked.out), console), console)


def _confirm(asked: argparse.Namespace) -> int:
    from kdtvit_ray.cluster.driver import sweep
    from kdtvit_ray.study.replicates import replicates

    console = _console()
    bound, asks = replicates(asked.study, asked.data, asked.top, asked.folds, asked.seeds)
    code = sweep(bound, _options(asked, asked.study), console, confirm=asks)
    return _report_unless_stopped(asked.study, code, console)


def _options(asked: argparse.Namespace, out: str) -> Any:
    from kdtvit_ray.cluster.options import Options

    return Options(
        out=out, data=asked.data, workers=asked.workers, groups=asked.groups,
        gpus_per_worker=asked.gpus_per_worker, address=asked.address, takeover=asked.takeover,
    )  # fmt: skip


def _report_unless_stopped(study: str, code: int, console: "Console") -> int:
    return code if code == EXIT_INTERRUPTED else max(code, _write_report(study, console))


def _status(asked: argparse.Namespace) -> int:
    from kdtvit_ray.study.status import print_status

    print_status(asked.study, _console())
    return EXIT_OK


def _report(asked: argparse.Namespace) -> int:
    return _write_report(asked.study, _console())


def _compare(asked: argparse.Namespace) -> int:
    from kdtvit_ray.report.build import compare

    notes, errors = compare(asked.studies, _console(), Path(asked.out) if asked.out else None)
    for error in errors:
        print(f"kdtvit-ray: {error}", file=sys.stderr)
    return max(
        [EXIT_USER_ERROR if errors else EXIT_OK, *(_warn_of_damage(study, found) for study, found in notes.items())]
    )


def _write_report(study: str, console: "Console") -> int:
    from kdtvit_ray.report.build import print_headline, write_report
    from kdtvit_ray.results.findings import Findings
    from kdtvit_ray.results.study import load

    findings = Findings(load(study))
    written = write_report(findings)
    print_headline(findings, console)
    return _warn_of_damage(study, written.notes)


def _warn_of_damage(study: str, notes: Sequence[str]) -> int:
    """Say what of a study could not be read, after all that could; the exit code."""
    if not notes:
        return EXIT_OK
    more = f" (and {len(notes) - 1} more, all listed in its report under 'Protocol and data')" if notes[1:] else ""
    shown = without_secrets(study)
    print(f"kdtvit-ray: The study '{shown}' was read in part: {notes[0]}{more}", file=sys.stderr)
    return EXIT_USER_ERROR


class _Bar:
    """A progress bar of our own work; silent where the output is not a terminal."""

    def __init__(self, console: "Console", words: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(words, total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a count; allowed: a whole number from 1")
    return value


def _folds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numbers = range(_count(first), _count(last if dash else first) + 1)
        if not numbers:
            raise argparse.ArgumentTypeError(f"'{part}' holds no fold; allowed: a range such as 1-5")
        found += numbers
    return list(dict.fromkeys(found))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _groups(text: str) -> int:
    return 0 if text == "auto" else _count(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _count(width), _count(height)
