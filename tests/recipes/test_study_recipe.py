"""The study of label efficiency, small: what it trains, that it goes on, and that it gives the same numbers again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ponder_zoo.train.config import ConfigError, load_config, save_config

SMOKE = Path(__file__).resolve().parents[2] / "recipes/configs/study/smoke.yaml"


def settings(recipe, *arguments: str):
    study = recipe("study_label_efficiency")
    return study.without_nulls(load_config(study.Config, ["--config", str(SMOKE), *arguments]))


def test_every_labels_of_a_seed_are_a_part_of_more(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    cfg = settings(recipe, f"output={tmp_path}", "data.scenes=100")
    few, more = (study.write_scene_list(cfg, share, seed=1).read_text().split() for share in (0.01, 0.1))
    assert len(few) == 1 and len(more) == 10 and set(few) <= set(more)
    assert study.write_scene_list(cfg, 0.1, seed=2).read_text().split() != more


def test_scores_come_from_rooms_that_nothing_is_chosen_on(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    cfg = settings(recipe, f"output={tmp_path}")
    for labels in study.all_labels(cfg):
        job = study.finetuning(cfg, "rendering", labels, 0, "lr3e-3")
        assert job.test["split"] == "test"
        assert "split" not in job.values  # finetune.py evaluates on val, which the choice is made on
        scratch = study.finetuning(cfg, study.SCRATCH, labels, 0, "lr3e-3")
        assert {key for key in job.values if job.values[key] != scratch.values[key]} == {"init"}


def test_an_arm_may_have_its_weights_already(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    name = "sparseunet_ponderv2_tiny.synthetic"
    cfg = settings(recipe, f"output={tmp_path}", f"arms={{clusters: null, shipped: {{init: {name}}}}}")
    assert {job.about["arm"] for job in study.pretrainings(cfg)} == {"rendering"}
    inits = {
        arm: study.finetuning(cfg, arm, study.Labels("points", 20), 1, "lr3e-3").values["init"]
        for arm in (study.SCRATCH, "shipped", "rendering")
    }
    assert inits == {"scratch": "scratch", "shipped": name, "rendering": str(tmp_path / "pretrain/rendering-seed1")}


def test_choices_are_made_on_validation_rooms_also_for_real_scans(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    cfg = settings(recipe, f"output={tmp_path}", "choices={frozen: {mode: decoder}, gone: null}")
    quality = {("scratch", "lr3e-3"): 0.3, ("clusters", "frozen"): 0.4}
    trained = []

    def run(jobs, title):
        trained.extend(jobs)
        places = [(job.about["arm"], job.about["choice"]) for job in jobs]
        return [
            job.about | {"validation": {"mIoU": quality.get(place, 0.2)}}
            for job, place in zip(jobs, places, strict=True)
        ]

    kinds = ["scenes", "real", "linear"]
    chosen = study.choose(cfg, SimpleNamespace(run=run), ["scratch", "clusters"], kinds)
    assert chosen == {
        ("scratch", "scenes"): "lr3e-3",
        ("scratch", "real"): "lr3e-3",
        ("scratch", "linear"): "lr3e-3",
        ("clusters", "scenes"): "frozen",
        ("clusters", "real"): "frozen",
        ("clusters", "linear"): "lr3e-3",  # a frozen encoder has no parts to train
    }
    assert {job.about["labels"]["kind"] for job in trained} == {"scenes"}, "of one choice nothing is to be found out"
    assert all(job.about["seed"] == cfg.seeds[0] and job.values["seed"] == cfg.seeds[0] for job in trained)


def test_folds_of_real_scans_count_together(recipe) -> None:
    study = recipe("study_label_efficiency")
    labels = {"kind": "real", "amount": 1.0}
    about = {"arm": "scratch", "seed": 0, "labels": labels}
    folds = [[[3, 1], [0, 0]], [[0, 0], [2, 2]]]  # each shows one class only
    results = [about | {"confusion": {"classes": ["a", "b"], "matrix": matrix}} for matrix in folds]
    (row,) = study.collect_scores(settings(recipe), results)
    assert row["mIoU"] == pytest.approx((3 / 6 + 2 / 5) / 2)


def test_results_so_far_can_be_looked_at(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    cfg = settings(recipe, f"output={tmp_path}")
    done, missing = (study.finetuning(cfg, study.SCRATCH, study.Labels("points", n), 0, "lr3e-3") for n in (20, 50))
    done.folder.mkdir(parents=True)
    done.result.write_text(json.dumps({"confusion": {"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}}))
    study.write_results(cfg, [done, missing], {"baselines": {"height": 0.05}})
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["amount"], row["mIoU"]) for row in found["scores"]] == [(20, pytest.approx((3 / 4 + 4 / 5) / 2))]
    assert "| 20 | 77.5 |" in (tmp_path / "results.md").read_text() and (tmp_path / "results.svg").is_file()


def test_of_one_amount_of_labels_the_arms_are_rows(recipe, tmp_path) -> None:
    study = recipe("study_label_efficiency")
    cfg = settings(recipe, f"output={tmp_path}", "reconstructions=[]", "annotations=[]", "linear=[1.0]")
    job = study.finetuning(cfg, study.SCRATCH, study.Labels("linear", 1.0), 0, "lr3e-3")
    job.folder.mkdir(parents=True)
    job.result.write_text(json.dumps({"confusion": {"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}}))
    study.write_results(cfg, [job], {"baselines": {}, "pretraining": []})
    assert "| scratch | 77.5 |" in (tmp_path / "results.md").read_text()


def test_seeds_and_arms_may_be_added_to_a_study_but_not_changed(recipe, tmp_path) -> None:
    study, file = recipe("study_label_efficiency"), tmp_path / "config.yaml"
    save_config(settings(recipe, "seeds=[0]", "arms={more: {dropout: 0.5}, most: null}"), file)
    study.check_goes_on(settings(recipe, "seeds=[0, 1]", "arms={more: {dropout: 0.5}, most: {dropout: 0.8}}"), file)
    for argument in ("arms.more={dropout: 0.8}", "arms={more: {dropout: 0.5}, clusters: null}", "grid_size=0.3"):
        with pytest.raises(ConfigError, match="other settings"):
            study.check_goes_on(settings(recipe, "arms.more={dropout: 0.5}", argument), file)
    with pytest.raises(ConfigError, match=r"arms\.more"):
        study.check_goes_on(settings(recipe), file)  # what was there is not left out


def test_workers_end_with_a_study_that_is_killed(recipe, tmp_path) -> None:
    code = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import study_label_efficiency as study
if __name__ == "__main__":
    with study.start_workers(study.Config(output=sys.argv[2], jobs=1)) as workers:
        print(workers.pool.submit(os.getpid).result(), flush=True)
        workers.pool.submit(time.sleep, 60).result()
"""
    (tmp_path / "killed.py").write_text(code)
    recipes = Path(recipe("study_label_efficiency").__file__).parent
    command = [sys.executable, str(tmp_path / "killed.py"), str(recipes), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        worker = int(study.stdout.readline())
        study.kill()
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("arms={rendering: {max_stepz: 3}}", "max_stepz"),
        ("pretrain.lerning_rate=1", "lerning_rate"),
        ("finetune.max_stepz=3", "max_stepz"),
        ("arms={scratch: {}}", "other names"),
        ("arms={rendering: {init: runs/mine, max_steps: 3}}", "init or settings"),
        ("arms={rendering: null, clusters: null}", "got none.*full.yaml"),
        ("reference=rendring", "reference.*'rendring'"),
        ("data.name=rgbd", "data.name=synthetic"),
    ],
)
def test_wrong_settings_end_before_anything_trains(recipe, tmp_path, argument: str, message: str) -> None:
    cfg = settings(recipe, f"output={tmp_path / 'study'}", argument)
    with pytest.raises(ConfigError, match=message):
        recipe("study_label_efficiency").main(cfg)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["full", "ablation"])
def test_arms_change_what_all_have_in_common(recipe, name: str) -> None:
    study = recipe("study_label_efficiency")
    cfg = study.without_nulls(load_config(study.Config, ["--config", str(SMOKE.with_name(f"{name}.yaml"))]))
    jobs = {job.about["arm"]: job.values for job in study.pretrainings(cfg) if job.about["seed"] == 0}
    study.check_settings(cfg, list(study.pretrainings(cfg)))
    assert all(values["loss"]["temperature"] == 0.06 and values["data"]["scenes"] == 400 for values in jobs.values())
    assert jobs["clusters"]["semantic"]["targets"] == "clusters"
    if name == "full":
        assert list(jobs) == ["clusters", "labels_of_other_rooms"]
        assert jobs["labels_of_other_rooms"]["data"]["name"] == "synthetic:ScanNet", "no room is on both sides"
    else:
        assert "labels_of_other_rooms" not in jobs
        changed = {
            arm: [key for key in values if values[key] != jobs["clusters"].get(key)] for arm, values in jobs.items()
        }
        assert not changed.pop("clusters") and all(changed.values())


@pytest.mark.slow
@pytest.mark.timeout(900)  # three studies of two pre-trainings and a dozen fine-tunings each
def test_a_study_runs_goes_on_and_gives_the_same_numbers_again(start_recipe, recipe, tmp_path) -> None:
    arguments = ("--config", str(SMOKE), f"data.cache={tmp_path / 'rooms'}", "reconstructions=[0.125]", "linear=[]")
    arguments += ("arms.rendering=null",)
    start_recipe("study_label_efficiency", *arguments, f"output={tmp_path / 'a'}")
    first = json.loads((tmp_path / "a/results.json").read_text())
    arms = {(row["kind"], row["arm"], row["seed"]) for row in first["scores"]}
    assert arms == {(k, a, s) for k in ("scenes", "points") for a in ("scratch", "clusters") for s in (0, 1)}
    assert "clusters - scratch" in (tmp_path / "a/results.md").read_text()

    victim = next((tmp_path / "a/finetune").glob("points-20-clusters-*-seed1"))
    (victim / "result.json").unlink()  # as if stopped before it was done: it goes on, the others are not trained again
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("result.json")}
    start_recipe("study_label_efficiency", *arguments, f"output={tmp_path / 'a'}")
    assert json.loads((tmp_path / "a/results.json").read_text())["scores"] == first["scores"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    start_recipe("study_label_efficiency", *arguments, f"output={tmp_path / 'b'}", "jobs=1")
    assert json.loads((tmp_path / "b/results.json").read_text())["scores"] == first["scores"]
