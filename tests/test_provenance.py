"""A published folder says what made it, an archive can read it, and it can be made again."""

import json
import shutil
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate
from typer.testing import CliRunner

from xstudy.cli import app
from xstudy.core import DataError
from xstudy.design import load_profile
from xstudy.provenance import CRATE, compare_tables, crate_files, differences, read_record
from xstudy.publish import publish
from xstudy.store import file_sha256
from xstudy.study import finish_arm, open_study

SHORT = ["questions=[rq1]", "pretrain.steps=4", "target_tokens=1500", "intermediate_tokens=1500", "lab.text_per_language=60", "lab.parallel_rows=60",
         "evaluation={clean: 9, noise: 6, draws: 1, adaptive: 6, adaptive_languages: [en], queries: 3}"]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "(study, folder) of a toy study, every arm finished and published."
    place = tmp_path_factory.mktemp("provenance")
    study = open_study(load_profile("lab-demo", SHORT), store=place / "store")
    for arm in study.arms:
        for seed in study.profile.seeds:
            finish_arm(study, arm, seed)
    (place / "out" / "runs").mkdir(parents=True)
    (place / "out" / "runs" / "rq1.ipynb").write_text("{}")
    (place / "out" / "runs" / "rq1.log").write_text("a log")
    publish(study, place / "out", "xstudy run lab-demo", {"encoder": 2.0}, "2026-01-31", "2026-01-31T09:00:00Z")
    return study, place / "out"


def test_the_record_says_what_ran_where_from_what(published):
    study, folder = published
    record = read_record(folder)
    assert {"profile", "command", "date", "started", "ended", "commit", "dirty", "machine", "facts", "versions", "pins", "data", "seconds", "keys"} <= set(record)
    assert len(record["keys"]) == 1 + len(study.arms) * 2 + 1 and record["pins"]["torch"] and record["data"]["lab"] == study.source.digest()
    assert [x for x in differences(record, study) if "Files differed" not in x] == []


def test_the_crate_is_read_back(published):
    _, folder = published
    crate = ROCrate(folder)
    files = {f.id: f for f in crate.data_entities if f.type == "File"}
    assert set(files) == {p.relative_to(folder).as_posix() for p in crate_files(folder)} >= {"run.json", "report.html", "report.pdf", "result.json", "tables/effects.parquet", "runs/rq1.ipynb"}
    assert "runs/rq1.log" not in files and CRATE not in files
    for name, f in files.items():
        assert f["sha256"] == file_sha256(folder / name) and int(f["contentSize"]) == (folder / name).stat().st_size and "/" in f["encodingFormat"], name
    run = crate.get("#run")
    assert run.type == "CreateAction" and run["name"] == "xstudy run lab-demo" and run["startTime"] and run["endTime"] and run["instrument"]["@id"] == "#xstudy"
    assert "run.json" in [x.id for x in run["object"]] and "report.html" in [x.id for x in run["result"]]
    root = crate.root_dataset
    assert crate.name and crate.description and root["datePublished"] == "2026-01-31" and "Apache" in root["license"]["name"] and root["author"]["name"]
    assert any(x.startswith("torch 2.") for x in crate.get("#xstudy")["softwareRequirements"])


def test_published_again_the_crate_keeps_its_bytes(published):
    study, folder = published
    before = (folder / CRATE).read_bytes()
    publish(study, folder, "xstudy run lab-demo", {}, "2030-01-01")
    assert (folder / CRATE).read_bytes() == before


def test_rerun_says_what_differs_and_makes_equal_tables(published, tmp_path):
    study, folder = published
    old = tmp_path / "run"
    shutil.copytree(folder, old)
    record = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps(record | dict(commit="0123456789ab", pins=record["pins"] | {"torch": "1.0"})))
    words = ["rerun", str(old), "--store", str(study.store.root), "--out", str(tmp_path / "again"), "--check"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "0123456789ab" in done.stderr and "torch 1.0" in done.stderr and "equal byte for byte" in done.stdout
    assert (tmp_path / "again" / CRATE).is_file() and all(r["same"] for r in compare_tables(old, tmp_path / "again"))
    (old / "tables" / "gate.csv").write_text("changed")
    found = CliRunner().invoke(app, words)
    assert found.exception.exit_code == 2 and "1 of" in str(found.exception) and "gate.csv" in str(found.exception)
    assert "the folder of the run itself" in str(CliRunner().invoke(app, ["rerun", str(old), "--out", str(old)]).exception)


def test_a_run_published_at_an_address_is_judged_reported_and_repeated_from_there(published):
    import fsspec

    study, folder = published
    fs, words = fsspec.filesystem("memory"), ["--store", str(study.store.root), "--json"]
    for p in (p for p in folder.rglob("*") if p.is_file()):
        fs.pipe_file(f"/away/run/{p.relative_to(folder)}", p.read_bytes())
    call = lambda *w: CliRunner().invoke(app, [str(x) for x in w])
    assert call("claims", "--run", "memory://away/run", "--json").stdout == call("claims", "--run", folder, "--json").stdout
    fs.rm_file("/away/run/report.html")
    assert json.loads(call("report", "memory://away/run", *words).stdout)["html"] == "memory://away/run/report.html" and fs.exists("/away/run/report.html")
    again = json.loads(call("rerun", "memory://away/run", "--check", *words).stdout)
    assert again["folder"] == "memory://away/run-again" and again["tables"] and all(r["same"] for r in again["tables"]) and fs.exists("/away/run-again/runs/rq1.ipynb")
    assert "memory://nowhere: there is no run.json" in str(call("report", "memory://nowhere").exception) and not fs.exists("/nowhere")
    fs.rm("/away", recursive=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"profile": 3, "keys": {}}', None])
def test_no_record_is_one_sentence(text, tmp_path):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    for command in ("rerun", "report"):
        e = CliRunner().invoke(app, [command, str(tmp_path)]).exception
        assert isinstance(e, DataError) and "\n" not in str(e)


def test_records_from_before_resources_are_read():
    from xstudy.design import profile_from

    for path in (Path(__file__).resolve().parents[1] / "reports").glob("*/run.json"):
        record = read_record(path.parent)
        assert profile_from(record["profile"], str(path)).workers >= 1
