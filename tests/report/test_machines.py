"""What the report says of the machines of a study: other versions and devices, nodes set aside, whose fault a failure
was, stages of other studies."""

import json

from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.report import study_sections
from kdtvit_ray.report.document import Document, markdown
from kdtvit_ray.results.answer import answer
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rows import TrialRecord, read_rows, read_trials, write_trial
from kdtvit_ray.results.sessions import Session, read_sessions
from kdtvit_ray.results.study import load
from tests.results.fake_study import fake_study
from tests.results.measured import table_of


def report(location):
    """The sections that tell of machines, and the answer, as text."""
    findings = Findings(load(str(location)))
    sections = (study_sections.cost, study_sections.protocol, study_sections.failures)
    document = Document("", "", [], [section(findings) for section in sections])
    return "\n".join([markdown(document).replace("\\", ""), *answer(findings)])


def change(location, key_number, **more):
    """Change what one stage's record says."""
    path = sorted(location.glob("stages/*/stage.json"))[key_number]
    plain = json.loads(path.read_text())
    for name, value in more.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(plain))


def test_a_study_of_one_machine_says_nothing_of_machines(tmp_path):
    fake_study(tmp_path, trials=2, failed=0, pruned=0, baselines=("joint",))
    text = report(tmp_path)
    assert "About the machines" not in text
    assert "taken over" not in text


def test_mixed_versions_devices_and_nodes_that_were_set_aside_are_told(tmp_path):
    fake_study(tmp_path, trials=2, failed=0, pruned=0, baselines=("joint",))
    stages = len(list(tmp_path.glob("stages/*/stage.json")))
    for number in range(stages):
        change(tmp_path, number, versions={"torch": "2.9.0", "timm": "1.0"})
    change(tmp_path, 0, versions={"torch": "2.10.0"}, cost={"device_type": "cuda"}, device="NVIDIA A100")
    folder = StudyFolder(str(tmp_path))
    first = Session("session-20260101-120000", "host", {"torch": "2.9.0"}, ("bad: its cache cannot be written",))
    first.write(folder)
    differences = ("other has torch 2.10.0 (the driver's: 2.9.0)",)
    Session("session-20260102-120000", "host", differences=differences).write(folder)
    assert read_sessions(folder)[0] == first
    text = report(tmp_path)
    assert f"several versions of torch: 2.10.0 (1 stage) and 2.9.0 ({stages - 1} stages)" in text
    assert "several versions of timm" not in text
    assert f"several kinds of device: NVIDIA A100 (1 stage) and cpu ({stages - 1} stages)" in text
    assert "session-20260101-120000: the node bad: its cache cannot be written; it was set aside" in text
    assert "session-20260102-120000: other has torch 2.10.0" in text


def test_what_variants_of_the_images_cost_a_teacher_is_told(tmp_path):
    fake_study(tmp_path, trials=2, failed=0, pruned=0, baselines=("joint",))
    assert "Views: " not in report(tmp_path)
    for number, path in enumerate(sorted(tmp_path.glob("stages/*/stage.json"))):
        spec = json.loads(path.read_text())["spec"]
        training = {**spec["training"], "variants": 2, "stain": "hed", "epochs": 40}
        change(tmp_path, number, spec={"training": training})
    assert "Views: 16 of an image (2 variants, each in 8 of the square's views)" in report(tmp_path)
    assert "at most 16 passes over a stage's images" in report(tmp_path)


def test_a_session_that_cannot_be_read_is_left_out(tmp_path):
    folder = StudyFolder(str(tmp_path))
    folder.write(f"{folder.sessions}/session-1.json", b"{")
    folder.write(f"{folder.sessions}/session-2.json", b"[]")
    Session("session-3").write(folder)
    assert [each.name for each in read_sessions(folder)] == ["session-3"]


def test_stages_of_other_studies_are_counted(tmp_path):
    fake_study(tmp_path, trials=2, failed=0, pruned=0, baselines=("joint",))
    assert "taken over" not in report(tmp_path)
    change(tmp_path, 1, study="theirs")
    change(tmp_path, 2, study="theirs")
    assert "Of these stages 2 were not trained here but taken over from other studies" in report(tmp_path)


def test_what_failed_for_reasons_of_the_infrastructure_is_told_apart(tmp_path):
    fake_study(tmp_path, trials=6, failed=2, pruned=0, baselines=("joint",))
    folder = StudyFolder(str(tmp_path))
    trials, rows = read_trials(folder), read_rows(folder)
    broken = trials[trials["state"] == "failed"]
    assert "for reasons of the infrastructure" not in report(tmp_path)
    lost = broken.iloc[0]
    record = TrialRecord(**{**lost, "fault": "infrastructure", "reason": "its worker died 3 times"})
    write_trial(folder, record, table_of(rows[rows["trial"] == lost["trial"]]))
    text = report(tmp_path)
    assert "1 of them failed for reasons of the infrastructure, not of its own" in text
    assert "2 trials failed, 1 for reasons of the infrastructure: " in text
    assert "| infrastructure | its worker died 3 times |" in " ".join(text.split())
