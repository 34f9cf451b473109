"""`kdtvit-ray check` as a command: what a prepared set holds, what a space would train, and mistakes."""

import shutil
from pathlib import Path

import pytest

from kdtvit_ray.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(capsys, monkeypatch):
    """The command with arguments in the folder `where`: what it prints, and with another code than 0 its error."""

    def run(*arguments, code=0, where=ROOT):
        monkeypatch.chdir(where)
        assert main(["check", *map(str, arguments)]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def lines(output):
    """The words of each line by its first one."""
    return {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}


def test_a_space_tells_what_it_would_train_and_what_that_costs(run, space):
    told = lines(run(space, "--seconds", 60))
    assert told["trials"][:5] == ["5", "searched", "+", "2", "baselines"]
    assert told["dtype"][1:4] == ["on", "this", "machine"], "a study asks its own devices"
    asked, distinct = int(told["stages"][0]), int(told["stages"][3])
    assert asked == 5 * 4 + 1 + 4
    assert 4 + 1 <= distinct < asked
    assert told["stages"][-1] == str(asked - distinct)
    assert " ".join(told["cost"]).startswith(f"about {distinct} min 00 s on one worker group")
    assert told["the"] == ["counts", "below", "are", "estimated", "from", "settings", "drawn", "at", "random"]


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ("", "8 of an image; a teacher computes at most 8 passes over a stage's images"),
        (
            "training.variants = [1, 2]",
            "16 of an image (2 variants, each in 8 of the square's views); a teacher computes at most 12 passes over a "
            "stage's images, one a view and no more than the 12 epochs",
        ),
        ("training.variants = [2, 4]\ntraining.epochs = [20, 50]\n", "a teacher computes at most 32 passes"),
        ('training.variants = [2, 4]\ntraining.views = ["none"]\n', "a teacher computes at most 12 passes"),
    ],
)
def test_a_space_tells_what_variants_cost(run, tmp_path, search, told):
    stain = 'stain = "hed"\n' if search else ""
    text = f"[study]\ntrials = 1\n[training]\nepochs = 12\n{stain}[search]\ntemperature = [2]\n{search}"
    (tmp_path / "variants.toml").write_text(text)
    views = lines(run(tmp_path / "variants.toml"))["views"]
    assert told in " ".join(views)


def test_a_space_tells_what_rehearsal_costs(run, tmp_path):
    text = "[study]\ntrials = 1\nobjective_folds = 1\nbaselines = []\n[training]\nrehearsal = 0.5\nepochs = 4\n"
    (tmp_path / "rehearsal.toml").write_text(text + "[search]\ntemperature = [2]\n")
    told = lines(run(tmp_path / "rehearsal.toml", "--seconds", 60))
    assert " ".join(told["rehearsal"]) == (
        "up to 50% of a stage's images, whose epochs then have 2.00 times as many; a teacher computes about 4.0 "
        "outputs more for each of a stage's images"
    )
    assert told["stages"][:4] == ["8", "asked", "for,", "7"], "the chain and its twin, which share the first stage"
    assert " ".join(told["cost"]).startswith("about 10 min 00 s on one"), "three of the seven take twice as long"


def test_no_line_goes_on_below_the_labels(run, tmp_path, data):
    """Text begins in the eleventh column of every line, however long the line is."""
    (tmp_path / "long.toml").write_text(
        "[study]\ntrials = 4\nobjective_folds = 2\n[chain]\nimage_size = 16\n[training]\nepochs = 2\n"
        f"[search]\nalpha = {[round(0.01 * each, 2) for each in range(1, 30)]}\n"
    )
    told = run(tmp_path / "long.toml", "--data", data).splitlines()
    assert max(map(len, told)) > 80
    for line in told:
        assert (line[9], line[10] == " ", " " in line[:10].strip()) == (" ", False, False), line


def test_a_space_and_a_set_of_another_size_are_told_together_as_a_sweep_tells_them(run, tmp_path, data):
    (tmp_path / "small.toml").write_text("[study]\ntrials = 1\n[chain]\nimage_size = 16\n[search]\nalpha = [0.5]\n")
    said = "The images were prepared at 24 px and the models take 16 px, so they are resized twice;"
    assert said in run(tmp_path / "small.toml", "--data", data)
    assert "resized twice" not in run(tmp_path / "small.toml")


def test_a_shipped_space_is_found_by_its_name(run):
    assert "search    temperature" in run("demo")


def test_a_folder_of_a_shipped_spaces_name_does_not_hide_it(run, tmp_path):
    (tmp_path / "demo").mkdir()  # `make demo` leaves one behind
    assert "search    temperature" in run("demo", where=tmp_path)


def test_a_prepared_set_tells_its_images(run, data):
    output = run(data)
    assert "384 images of 48 slides" in output
    assert "fingerprint" in output


def test_a_set_whose_pixels_were_changed_is_refused_after_it_was_shown(run, tmp_path, data, space, capsys):
    copy = shutil.copytree(data, tmp_path / "copy")
    space = shutil.copy(space, tmp_path / "small.toml")
    for changed in (False, True):
        if changed:
            with (copy / "images.npy").open("r+b") as images:
                images.seek(5_000)
                images.write(bytes(100))
        code = main(["check", str(copy)])
        said = capsys.readouterr()
        assert "fingerprint" in said.out
        assert (code, "so its images were changed or are damaged" in said.err) == ((2, True) if changed else (0, False))
    assert f"Prepared set '{copy}' is not what 'kdtvit-ray prepare' wrote" in run(space, "--data", copy, code=2)


def test_mistakes_are_one_sentence(run, tmp_path, space):
    (tmp_path / "wrong.toml").write_text(space.read_text().replace("lag = 2", "lagg = 2"))
    for what, told in (
        ("dmeo", "Unknown space 'dmeo' (did you mean 'demo'?)"),
        (tmp_path, "holds no prepared set"),
        (tmp_path / "wrong.toml", "Unknown key in [study] 'lagg' (did you mean 'lag'?)"),
    ):
        output = run(what, code=2)
        assert output.startswith("kdtvit-ray: ")
        assert told in output
        assert output.count("\n") == 1
