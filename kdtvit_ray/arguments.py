"""The arguments of the command line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from kdtvit_ray import __version__
from kdtvit_ray.argument_values import count, folds, groups, number, seconds, seed, share, size, whole, words
from kdtvit_ray.errors import EXIT_USER_ERROR, unknown
from kdtvit_ray.study.settings import TRACKERS

STUDY = "the folder or URI of a study"


class Parser(argparse.ArgumentParser):
    """A parser that answers a misspelt option or command with the nearest one. It looks for them first: argparse would
    miss what is required before it names what it does not know."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if mistake := self._mistake(words):
            self.exit(EXIT_USER_ERROR, f"kdtvit-ray: {mistake}\n")
        found, more = super().parse_known_args(words, namespace)
        if more:
            self.error(f"unrecognized arguments: {' '.join(more)}")
        return found, more

    def _mistake(self, words: Sequence[str]) -> str:
        """One sentence for the first word that is no option or command of this parser; empty where all are known."""
        commands = next((each.choices for each in self._actions if isinstance(each, argparse._SubParsersAction)), None)
        options = [each for each in self._option_string_actions if each.startswith("--")]
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name:
                if not any(each.startswith(name) for each in options):  # argparse takes the beginning of a name
                    of = self.prog.partition(" ")[2]
                    return unknown(f"option of {of}" if of else "option", name, options)
            elif commands and not word.startswith("-"):
                return "" if word in commands else unknown("command", word, commands)  # the rest is the command's
        return ""


def parser() -> argparse.ArgumentParser:
    """The commands with their arguments; `command` names the one that was given."""
    made = Parser(
        prog="kdtvit-ray",
        description="Studies of sequential knowledge distillation over magnifications, on Ray.",
        epilog="Example: kdtvit-ray sweep demo --data data/synthetic --out studies/demo",
    )
    made.add_argument("--version", action="version", version=f"kdtvit-ray {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, words: str, example: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words, epilog=f"Example: kdtvit-ray {example}")
        one.set_defaults(command=name)
        return one

    synth = command(
        "synth",
        "Generate a synthetic four-magnification set with official names.",
        "synth data/images --patients 40",
    )
    synth.add_argument("out", metavar="OUT", help="folder for the images")
    synth.add_argument("--patients", type=count, default=40, help="number of patients (default 40)")
    synth.add_argument("--images", type=count, default=6, help="images per patient and magnification (default 6)")
    synth.add_argument("--size", type=size, default=(700, 460), metavar="WxH", help="pixels (default 700x460)")
    synth.add_argument("--seed", type=whole, default=0, help="another seed gives another set")
    synth.add_argument("--census", action="store_true", help="the full census: 7,909 images under the official names")

    prepare = command(
        "prepare",
        "Decode a set of images once, for all sweeps: BreakHis, or another set.",
        "prepare BreaKHis_v1.tar.gz data/prepared",
    )
    prepare.add_argument(
        "source",
        metavar="SOURCE",
        help="BreakHis: its folder or an archive of it (.tar.gz, .zip); a table (.csv) with the columns path, label, "
        "magnification, patient and, where there are such, slide, subtype, fold; or a folder of "
        "magnification/class/patient/*.png",
    )
    prepare.add_argument("out", metavar="OUT", help="folder for the prepared set")
    prepare.add_argument(
        "--positive",
        action="append",
        default=[],
        metavar="LABEL[,LABEL...]",
        help="the labels that count as positive (not needed for BreakHis, benign/malignant and 0/1); a label that has "
        "commas itself is taken whole; may be given several times",
    )
    prepare.add_argument(
        "--pattern",
        default="",
        help="how the paths of a folder are named, such as '{magnification}x/{label}/{patient}_{rest}.png'",
    )
    prepare.add_argument("--size", type=count, default=256, help="side of the stored square in pixels (default 256)")
    prepare.add_argument(
        "--aspect",
        choices=("crop", "squash"),
        default="crop",
        help="how an image becomes a square: its centre, or squashed (default crop)",
    )

    check = command(
        "check", "Audit a prepared set, or dry-run a space: its stages, what is shared, the cost.", "check demo"
    )
    check.add_argument("what", metavar="DATA|SPACE", help="a prepared folder, a space file or a shipped space")
    check.add_argument("--data", default="", help="a prepared set: what can a study of this space on it show?")
    check.add_argument("--seconds", type=seconds, default=0.0, metavar="S", help="seconds per stage, to tell the cost")

    chain = command(
        "chain",
        "Run one chain in this process, without Ray.",
        "chain demo --data data/prepared --order '400>200>100>40' --temperature 4",
    )
    chain.add_argument("space", metavar="SPACE|STUDY", help="a space file, a shipped space, or a study's folder")
    chain.add_argument("--data", required=True, help="the prepared set")
    chain.add_argument(
        "--trial", default="", help="the chain of this trial of the study, such as 3 or t0003, or a baseline's name"
    )
    chain.add_argument("--order", help="such as 40>100>200>400")
    chain.add_argument("--temperature", type=number)
    chain.add_argument("--alpha", type=number, help="weight of the distillation term, 0 to 1")
    chain.add_argument("--student", help="a model of the space, or a size")
    chain.add_argument("--seed", type=seed)

    sweep = command(
        "sweep",
        "Run a study on this machine or on a Ray cluster, or go on with it.",
        "sweep demo --data data/prepared --out studies/demo --trials 20",
    )
    sweep.add_argument("space", metavar="SPACE", help="a space file or a shipped space")
    sweep.add_argument("--data", required=True, help="the prepared set")
    sweep.add_argument("--out", required=True, metavar="STUDY", help="the study's folder, or a URI such as s3://...")
    sweep.add_argument("--trials", type=count, help="number of searched trials (default: the space's)")
    sweep.add_argument("--seed", type=seed, help="seed of search and training (default: the space's)")
    _resources(sweep)

    confirm = command(
        "confirm",
        "Train a study's best trials and its baselines again over folds and seeds.",
        "confirm studies/demo --top 3 --folds 1-5 --seeds 3",
    )
    confirm.add_argument("study", metavar="STUDY", help="the folder of a study whose sweep has run")
    confirm.add_argument("--data", default="", help="the prepared set (default: the study's)")
    confirm.add_argument("--top", type=count, default=3, help="how many of the best trials (default 3)")
    confirm.add_argument(
        "--folds", type=folds, default=[1], metavar="1-5", help="folds, such as 1-5 or 1,3 (default 1)"
    )
    confirm.add_argument("--seeds", type=count, default=3, help="training seeds at each fold (default 3)")
    confirm.add_argument(
        "--search",
        action="store_true",
        help="repeat the whole search inside each of --folds instead (nested cross-validation)",
    )
    _resources(confirm)

    doctor = command(
        "doctor",
        "Check every node before a sweep: versions, devices, storage, data, an all-reduce.",
        "doctor --address auto --out /shared/studies/demo --data data/prepared --space demo",
    )
    doctor.add_argument(
        "--out", default="", metavar="STUDY", help="where the study will be: is it the same everywhere?"
    )
    doctor.add_argument("--data", default="", help="the prepared set: where does it lie, where will it be copied?")
    doctor.add_argument("--space", default="", help="a space file or a shipped space: how many groups can have work?")
    _groups(doctor)

    status = command(
        "status", "Say how a study is going, from any machine that sees its folder.", "status studies/demo"
    )
    status.add_argument("study", metavar="STUDY", help=STUDY)

    explain = command(
        "explain",
        "Draw where a model looks: attention rollout and gradients, a PNG for each slide.",
        "explain studies/demo data/images/SOB_M_DC-14-10926-*.png",
    )
    explain.add_argument("model", metavar="MODEL", help="a study, or the folder of an exported model")
    explain.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="images, folders, patterns, archives or a table, as for predict (default, with a study: test images on "
        "which its model is most confidently right and wrong)",
    )
    explain.add_argument("--trial", default="", help="the model of this trial or baseline (default: the best)")
    explain.add_argument(
        "--out",
        default="",
        metavar="FOLDER",
        help="where the PNGs go (default explanations/; of test images: the study's)",
    )
    explain.add_argument("--data", default="", help="the prepared set with the test images (default: the study's)")

    gc = command(
        "gc",
        "Say which stages of a shared store none of some studies has, and delete them if asked.",
        "gc /lab/stages --studies studies/a studies/b",
    )
    gc.add_argument("stages", metavar="STAGES", help="the folder or URI that was given to --stages")
    gc.add_argument("--studies", metavar="STUDY", nargs="+", required=True, help="the studies whose stages are kept")
    gc.add_argument("--delete", action="store_true", help="delete them (without it they are only listed)")

    report = command("report", "Print a study's tables and write its report.", "report studies/demo")
    report.add_argument("study", metavar="STUDY", help=STUDY)

    track = command(
        "track",
        "Publish a study's trials, stages and report to MLflow, W&B or TensorBoard.",
        "track studies/demo --to mlflow",
    )
    track.add_argument("study", metavar="STUDY", help=STUDY)
    track.add_argument("--to", nargs="+", choices=TRACKERS, required=True, help="where to; only what is new there")
    track.add_argument(
        "--logdir",
        default="",
        help="where TensorBoard's files go, in a folder for each study (default: STUDY/tensorboard)",
    )

    compare = command("compare", "Put several studies side by side.", "compare studies/a studies/b")
    compare.add_argument("studies", metavar="STUDY", nargs="+", help="the folders or URIs of studies")
    compare.add_argument("--out", metavar="FILE", help="also write it to a .csv, .tex, .md or .html file")

    export = command(
        "export",
        "Write a study's model as a folder: weights for timm, ONNX, a model card.",
        "export studies/demo models/demo",
    )
    export.add_argument("study", metavar="STUDY", help=STUDY)
    export.add_argument("out", metavar="OUT", help="folder for the model")
    export.add_argument(
        "--trial", default="best", help="best (default), a trial such as 3 or t0003, or a baseline's name"
    )
    export.add_argument(
        "--int8", action="store_true", help="also write ONNX with weights of eight bits, and measure what it changes"
    )
    export.add_argument("--data", default="", help="the prepared set, for such measurements (default: the study's)")

    predict = command(
        "predict",
        "Use a model on new images of any magnification.",
        "predict models/demo images/*.png --out predictions.csv",
    )
    predict.add_argument("model", metavar="MODEL", help="the folder of an export, its .onnx file, or a study")
    predict.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="images, folders, patterns, archives (.zip, .tar.gz), or a table (.csv) with the column path and, where "
        "they are known, label, patient, slide, magnification",
    )
    predict.add_argument("--trial", default="", help="of a study: best (default), a trial, or a baseline's name")
    predict.add_argument(
        "--out", default="", metavar="FILE", help="write the table to a .csv or .parquet file, and others beside it"
    )
    predict.add_argument("--tta", action="store_true", help="average the eight views of each image")
    predict.add_argument(
        "--threshold",
        default="",
        metavar="T",
        help="half (0.5, the default), balanced or sensitive as fitted on development patients, or a number",
    )
    predict.add_argument(
        "--threads", type=count, default=0, help="CPU threads of the model (default: the study's, for its very numbers)"
    )
    return made


def _resources(parser: argparse.ArgumentParser) -> None:
    _groups(parser)
    parser.add_argument(
        "--stages",
        default="",
        metavar="STAGES",
        help="a store of stages, a folder or URI, that this study shares with others (default: none)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="run trials again that failed for reasons of the infrastructure"
    )
    parser.add_argument(
        "--retry", type=words, default=[], metavar="TRIAL[,TRIAL...]", help="run these failed trials again as well"
    )
    parser.add_argument("--takeover", action="store_true", help="take the study over from a driver that is dead")


def _groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=count, default=1, help="workers in a group that train together (default 1)")
    parser.add_argument(
        "--groups",
        type=groups,
        default=0,
        metavar="N|auto",
        help="worker groups (default auto: as many as the cluster has room for)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=share,
        default=-1.0,
        metavar="G",
        help="share of a GPU for each worker, such as 1 or 0.25 (default: 1 where there are GPUs)",
    )
    parser.add_argument("--address", default="", help="a running Ray cluster, such as auto or HOST:6379")
