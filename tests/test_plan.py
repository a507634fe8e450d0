"""Plans before anything runs: values changed in words, what is finished, what this machine cannot do, ten thousand arms."""

import json
import time

import jsonschema
import pytest
from typer.testing import CliRunner

from xstudy.cli import app
from xstudy.core import SettingsError
from xstudy.design import load_profile, profile_from, profile_names, profile_schema, read_profile
from xstudy.plan import plan_of, problems
from xstudy.store import Store
from xstudy.study import arm_key, arm_keys, open_study

SHORT = ["questions=[rq1]", "pretrain.steps=4", "target_tokens=1500", "intermediate_tokens=1500", "lab.text_per_language=60", "evaluation={clean: 9, noise: 6, draws: 1, adaptive: 6, adaptive_languages: [en], queries: 3}"]


def call(*words):
    "Runs the command line; returns (exit code, output or the sentence of an error)."
    r = CliRunner().invoke(app, [str(w) for w in words])
    return getattr(r.exception, "exit_code", r.exit_code), r.output if r.exception is None or isinstance(r.exception, SystemExit) else str(r.exception)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_follows_the_schema_and_can_be_planned(name, tmp_path):
    jsonschema.validate(read_profile(name)[0], profile_schema())
    p = load_profile(name)
    assert p.name == name and profile_from(json.loads(call("profiles", name, "--json")[1]), name) == p
    if not p.transplant:  # whose English encoder need not be here
        plan = plan_of(open_study(p, store=tmp_path), here=False)
        assert plan.seconds() > 0 and all(r.memory > 0 for r in plan.rows) and len(plan.planned) > 10


def test_the_profiles_of_the_issue_are_there():
    assert {"lab-quick", "lab-full", "folder-small", "folder-minilm", "hub-base", "hub-large", "hub-xl"} <= set(profile_names())


def test_resources_are_no_part_of_a_key(tmp_path):
    store = Store(tmp_path)
    one, other = (open_study(load_profile("lab-demo", v), store=store) for v in ([], ["resources={workers: 7, memory: 3, time: 2}"]))
    assert arm_key(one, "paws", 0) == arm_key(other, "paws", 0) == arm_keys(other, "paws", 0).record
    old = {k: v for k, v in read_profile("lab-demo")[0].items() if k != "resources"} | {"workers": 3}
    assert profile_from(old, "old").workers == 3, "records from before resources are read"


@pytest.mark.parametrize("words,said", [
    ("seeds", "NAME=VALUE"), ("=1", "NAME=VALUE"), ("sedes=[1]", "'seeds'"), ("stage.loop.lr=fast", "must be a float"), ("intermediate.7.task=qqp", "a list of 2"),
    ("seeds=[0", "not readable YAML"), ("lab=&a {x: *a}", "circle"), ("resources.workers=0", "give 1 or more"), ("source=web", "no source"), ("lab.dve=3", "'dev'"),
    ("evaluation.queries=0", "give 1 or more"), ("stage.loop.lr=.nan", "finite"), ("stage.loop.lr=-1", "0 or more"), ("evaluation.attacks=[tipo]", "'typo'"), ("evaluation.attacks=[]", "each once"),
    ("name=a/b", "cannot be a profile's name"), ("questions=[rq1, rq1]", "each once"), ("stage.task=x", "the arms' own"), ("pretrain.steps=-1", "0 or more"),
    ("intermediate=[{task: lab-paws}, {task: lab-paws}]", "each once"), ("evaluation.words=2", "share"),
])  # fmt: skip
def test_a_wrong_value_is_one_sentence(words, said):
    with pytest.raises(SettingsError, match=".") as e:
        load_profile("lab-demo", [words])
    assert said in str(e.value) and "\n" not in str(e.value)


def test_a_name_given_twice_in_a_profile_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("name: twice\nseeds: [0]\nlab: {dev: 3, dev: 4}\nseeds: [1]\n")
    code, said = call("plan", tmp_path / "twice.yaml")
    assert code == 2 and "'seeds' is given twice, the second time in line 4" in said


@pytest.mark.parametrize("cluster,said", [("tcp://127.0.0.1:9", "127.0.0.1:9 does not answer"), ("slurm", "no cluster"), ("none.yaml", "not a readable YAML")])
def test_a_cluster_that_cannot_be_had_is_said_at_plan_time(cluster, said, tmp_path):
    start = time.monotonic()
    code, text = call("plan", "lab-demo", "--store", tmp_path, "--cluster", cluster)
    assert code == 2 and said in text and "\n" not in text and time.monotonic() - start < 20


def test_a_profile_that_goes_round_in_a_circle_is_refused(tmp_path):
    (tmp_path / "round.yaml").write_text("name: round\nfactors: &f\n  options: *f\n")
    code, said = call("plan", tmp_path / "round.yaml")
    assert code == 2 and "circle" in said


@pytest.mark.parametrize("words,said", [("stage.threads=512", "512 threads"), ("resources.memory=1000000", "GB a job"), ("resources.gpus=64", "GPUs"), ("resources.threads=999", "threads")])
def test_what_the_machine_cannot_do_is_said_at_plan_time_and_before_a_run(words, said, tmp_path):
    for command in ("plan", "run"):
        code, text = call(command, "lab-demo", "--set", words, "--store", tmp_path / "store", *(["--out", tmp_path / "out"] if command == "run" else []))
        assert code == 2 and said in text and not (tmp_path / "out").exists(), text
    assert call("plan", "lab-demo", "--set", words, "--store", tmp_path / "store", "--elsewhere")[0] == 0


def test_gpu_hours_by_arithmetic(tmp_path):
    code, text = call("plan", "hub-base", "--store", tmp_path, "--elsewhere", "--json")
    hours = json.loads(text)["totals"]["gpu_hours"]
    large = json.loads(call("plan", "hub-large", "--store", tmp_path, "--elsewhere", "--json")[1])["totals"]["gpu_hours"]
    assert code == 0 and 0.5 < hours < 1000 and 2.5 < large / hours < 4, "large has 3.5 times the layers' weights"
    assert "GPUs; this machine has" in call("plan", "hub-base", "--store", tmp_path)[1]


def test_an_unwritable_store_is_named_at_plan_time(tmp_path):
    (tmp_path / "file").write_text("no folder")
    code, said = call("plan", "lab-demo", "--store", tmp_path / "file")
    assert code == 2 and "cannot be written" in said
    code, said = call("plan", "lab-demo", "--store", "/proc/nowhere")
    assert code == 2 and "/proc/nowhere cannot be made" in said and "\n" not in said


def test_a_folder_for_the_report_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    code, said = call("run", "lab-demo", "--store", tmp_path, "--out", "/proc/nowhere/out")
    assert code == 2 and "/proc/nowhere/out cannot be made" in said and not list(tmp_path.glob("objects/*/*"))


def test_ten_thousand_arms_in_under_five_seconds(tmp_path):
    store = Store(tmp_path)
    store.put_json("arm-x", {"a": 1})  # a store that holds something: every key is made
    study = open_study(load_profile("lab-demo", [f"seeds={list(range(600))}"]), store=store)
    start = time.process_time()
    plan = plan_of(study, here=False)
    assert sum(r.runs for r in plan.rows if r.kind == "arm") == 10_200 and time.process_time() - start < 5


def test_shared_stages_are_counted_once_and_finished_ones_are_marked(tmp_path):
    from xstudy.study import finish_arm

    study = open_study(load_profile("lab-demo", SHORT), store=tmp_path)
    finish_arm(study, "paws", 0)
    rows = {r.stage: r for r in plan_of(study, here=False).rows}
    assert (rows["encoder lab-0.3m"].finished, rows["before paws"].finished, rows["before paws"].runs, rows["paws"].finished, rows["qqp"].finished) == (1, 1, 2, 1, 0)
    assert rows["encoder lab-0.3m"].arms == len(study.arms) and rows["encoder lab-0.3m"].runs == 1 and rows["encoder lab-0.3m"].seconds == 0
