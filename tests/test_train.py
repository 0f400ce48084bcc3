"""The command line: defaults, published flags, a whole run, Ctrl-C and going on."""

import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kernels
import train
from gs.cli import Config
from gs.config import resume_command
from gs.data.demo import write_demo_scene
from gs.data.loader import ImageLoader
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.evaluation.views import evaluate_views, mean_scores
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the built-in scene: 9 views, two of them for testing."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are tiny: more threads would only wait for each other."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def parse(line: str) -> Config:
    return train.parse(shlex.split(line))


def command_flags(command: str) -> list[str]:
    """A printed command without the words that start the program."""
    words = shlex.split(command)
    return words[words.index("-s") :]


def test_defaults_are_the_published_setting_beta() -> None:
    config = parse("-s scene")
    assert (config.choice.method, config.choice.preset) == ("mask-gaussian", "beta")
    assert config.train.iterations == 30_000
    assert config.pruning.lambda_mask == 0.0005
    assert config.densify.densify_until_iter == 15_000
    assert config.pruning.mask_lr == 0.01
    out = config.train.model_path
    assert out.parent == Path("output") and len(out.name) == 10
    assert out != parse("-s scene").train.model_path


def test_published_flags() -> None:
    config = parse(
        "-s a/scene -m out -i images_4 -r -1 -w --eval --sh_degree 2 --iterations 8000"
        " --test_iterations 7000 30000 --save_iterations 7000 --checkpoint_iterations 1 2"
        " --start_checkpoint x.pth --init_points 5 --lambda_mask 0.1 --mask_from_iter 19000"
        " --mask_until_iter 20000 --position_lr_init 1e-3 --densify_grad_threshold 1e-3"
        " --opacity_reset_interval 7 --lambda_dssim 0.3 --random_background --quiet"
    )
    assert config.scene.source_path == Path("a/scene")
    assert (config.scene.images, config.scene.resolution) == ("images_4", -1)
    assert config.scene.white_background and config.scene.eval and config.train.quiet
    assert config.scene.init_points == 5
    assert (config.train.model_path, config.train.sh_degree) == (Path("out"), 2)
    assert config.train.test_iterations == (7000, 30_000)
    assert config.train.checkpoint_iterations == (1, 2)
    assert config.train.start_checkpoint == Path("x.pth")
    assert config.train.random_background and config.train.lambda_dssim == 0.3
    assert config.pruning.mask_from_iter == 19_000
    assert config.optim.position_lr_init == 1e-3
    assert config.densify.opacity_reset_interval == 7


def test_dashes_and_long_names() -> None:
    config = parse("--source-path s --model-path m --lambda-mask 2 --test-iterations -1 --images i")
    assert config.pruning.lambda_mask == 2.0
    assert config.train.test_iterations == (-1,)
    assert config.scene.images == "i"


def test_flags_of_the_published_program_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    line = "-s x --data_device cpu --iterations 8000 --port 6009 --ip 127.0.0.1 --disable_viewer -w"
    config = parse(line)
    assert config.train.iterations == 8000 and config.scene.white_background
    (record,) = caplog.records
    assert record.getMessage().endswith("--data_device, --ip, --port, --disable_viewer")
    config = parse("-s debug --images port --test_iterations -1 5")
    assert (config.scene.images, config.train.test_iterations) == ("port", (-1, 5))


def test_flags_win_over_presets() -> None:
    config = parse("-s x --preset alpha --lambda_mask 0.3")
    assert (config.pruning.lambda_mask, config.pruning.mask_from_iter) == (0.3, 19_000)
    assert parse("-s x --preset gamma").pruning.lambda_mask == 0.001


def test_only_the_chosen_method_has_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("-s x --method 3dgs --lambda_mask 1")
    said = "".join(capsys.readouterr())
    assert "Unrecognized options: --lambda_mask" in said


def test_the_densifier_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse("-s x --densifier taming --budget 300000 --method 3dgs")
    assert (config.densify.limit(5), config.densify.densification_interval) == (300_000, 500)
    assert parse("-s x --densifier taming").densify.budget == "2x"
    config = parse("-s x --densifier mcmc --budget 1000000 --noise_lr 1e5")
    assert (config.densify.budget, config.densify.noise_lr) == ("1000000", 1e5)
    assert config.densify.densify_until_iter == 25_000
    short = parse("-s x --densifier mcmc --iterations 3000").densify
    assert (short.densify_until_iter, short.budget) == (2500, "5x")
    with pytest.raises(SystemExit):
        parse("-s x --budget 2x")
    assert "Unrecognized options: --budget" in "".join(capsys.readouterr())
    error = parse("-s x --densifier error --recipe fast --budget 381000").densify
    assert (error.budget, error.opacity_resets, error.densification_interval) == ("381000", 0, 150)
    for name in ("taming", "mcmc", "error"):
        with pytest.raises(SplatrimError, match="nothing is densified after iteration 30000"):
            parse(f"-s x --densifier {name} --start_ply a.ply")


def test_short_runs_scale_the_schedule_unless_told() -> None:
    short = parse("-s x --iterations 3000 --preset alpha")
    assert (short.pruning.mask_from_iter, short.pruning.mask_until_iter) == (1900, 2000)
    assert short.densify.densify_until_iter == 1500
    assert short.optim.position_lr_max_steps == 3000
    assert short.train.sh_degree_interval == 100
    given = parse("-s x --iterations 3000 --preset alpha --mask_until_iter 777")
    assert (given.pruning.mask_from_iter, given.pruning.mask_until_iter) == (1900, 777)
    published = parse("-s x --iterations 3000 --schedule published")
    assert published.densify == parse("-s x").densify
    assert parse("-s x --iterations 7000").densify == parse("-s x").densify
    scaled = parse("-s x --iterations 15000 --schedule scaled")
    assert scaled.densify.densify_until_iter == 7500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "-s x --densifier magic",
            "unknown --densifier 'magic': choose default, taming, mcmc, error",
        ),
        ("-s x --schedule magic", "unknown --schedule 'magic': choose auto, published, scaled"),
        ("-s x --densifier taming --budget many", "--budget many: give a number of Gaussians"),
        ("-s x --method magic", "unknown --method 'magic': choose mask-gaussian, "),
        ("-s x --preset omega", "no preset 'omega': choose beta"),
        ("-s x --iterations 0", "--iterations must be at least 1"),
        ("-s x --sh_degree 4", "--sh_degree must be 0 to 3"),
        ("-s x --anneal_to 0", "--anneal_to must be positive"),
        ("-s x --anneal_from 1.5", "--anneal_from must be 0 to 1"),
    ],
)
def test_impossible_choices(line: str, message: str) -> None:
    with pytest.raises(SplatrimError, match=message):
        parse(line)


def test_the_fast_recipe_and_flags_over_it() -> None:
    flags = ["-s", "x", "-m", "y", "--recipe", "fast"]
    fast = train.parse(flags)
    assert fast.train.iterations == 14_000 and fast.train.test_iterations == ()
    assert fast.optim == OptimConfig().scaled(14 / 30).hastened()
    assert fast.optim.anneal_to < 1 and fast.optim.feature_lr > OptimConfig().feature_lr
    assert fast.densify.densification_interval == 150
    for white in (False, True):
        steps = range(fast.densify.densify_from_iter + 1, 14_001)
        assert not any(fast.densify.resets_opacity_at(s, white_background=white) for s in steps)
    own = train.parse([*flags, "--anneal_to", "1", "--opacity_reset_interval", "500"])
    assert own.optim.anneal_to == 1 and own.densify.opacity_reset_interval == 500


def test_a_run_leaves_a_complete_folder(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train.main(["-s", str(scene), "-m", str(out), "--eval", "--iterations", "12", "--quiet"])
    config = json.loads((out / "config.json").read_text())
    want = {
        "source_path": str(scene),
        "model_path": str(out),
        "images": None,
        "resolution": -1,
        "white_background": False,
        "eval": True,
        "sh_degree": 3,
        "init_points": None,
        "iterations": 12,
        "method": "mask-gaussian",
        "preset": "beta",
        "seed": 0,
    }
    assert {key: config[key] for key in want} == want
    assert config["pruning"]["mask_until_iter"] == 12
    names = {path.name for path in out.iterdir()}
    assert {"cfg_args", "cameras.json", "input.ply", "train.log", "history.json"} <= names
    assert (out / "cfg_args").read_text().startswith("Namespace(sh_degree=3, source_path=")
    assert [e["step"] for e in json.loads((out / "history.json").read_text())["test"]] == [12]
    model = load_ply(out / "point_cloud" / "iteration_12" / "point_cloud.ply")
    assert len(model["means"]) > 0


def test_final_mask_sample_keeps_its_share(scene: Path, tmp_path: Path) -> None:
    line = f"-s {scene} -m {tmp_path}/out --iterations 3 --quiet --final_mask sample --seed 5"
    train.main([*shlex.split(line), "--mask_lr", "0"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pruning"]["final_mask"] == "sample" and config["seed"] == 5
    saved = load_ply(tmp_path / "out" / "point_cloud" / "iteration_3" / "point_cloud.ply")
    n = json.loads((tmp_path / "out" / "history.json").read_text())["n_gaussians"][-1]
    assert 0.995 * n < len(saved["means"]) <= n  # p = 0.99988


def test_ctrl_c_and_going_on_equal_an_uninterrupted_run(
    scene: Path, tmp_path: Path, repo: Path
) -> None:
    out, args = tmp_path / "out", ["-s", str(scene), "-r", "2", "--iterations", "60", "--quiet"]
    args += ["--densify_from_iter", "14", "--densify_grad_threshold", "2e-3"]
    command = [sys.executable, str(repo / "train.py"), *args, "-m", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("events.*")):  # training has begun
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("stopped; go on with: ")
    words = shlex.split(errors.split(": ", 1)[1])
    assert shutil.which(words[0]) == sys.executable and words[1] == str(repo / "train.py")
    assert 1 <= int(Path(words[-1]).stem.removeprefix("chkpnt")) < 60
    assert not list(out.glob("point_cloud/*"))

    train.main(words[2:])
    train.main([*args, "-m", str(tmp_path / "whole")])
    file = Path("point_cloud") / "iteration_60" / "point_cloud.ply"
    assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert len([name for name in os.listdir(out) if "tmp" in name]) == 0


def test_going_on_from_the_published_checkpoint(data_root: Path, tmp_path: Path) -> None:
    checkpoint = data_root / "golden" / "maskgaussian_run" / "chkpnt60.pth"
    fox = data_root / "data" / "fox"
    if not checkpoint.is_file() or not fox.is_dir():
        pytest.skip("the published checkpoint or its scene is not there")
    line = f"-s {fox} -m {tmp_path}/out -r 8 --iterations 62 --schedule published --quiet"
    train.main([*shlex.split(line), "--start_checkpoint", str(checkpoint)])
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["step"] == [62] and history["n_gaussians"] == [14_266]
    # 60 published iterations lift it well above the 10 dB of the start
    assert history["psnr"][0] > 14.0


@pytest.fixture(scope="module")
def finished_ply(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's points as a model of SH degree 1, as if it were trained."""
    points = load_scene(scene)
    model = Gaussians.from_points(points.points[::4], points.colors[::4], sh_degree=1)
    model.params["opacities"].data.fill_(1.0)
    path = tmp_path_factory.mktemp("models") / "model.ply"
    save_ply(path, model.to_tensors())
    return path


def test_settings_of_post_training() -> None:
    config = parse("-s x --start_ply any.ply")
    assert (config.choice.preset, config.train.post_start) == ("post", 30_000)
    assert (config.train.iterations, config.train.test_iterations) == (35_000, (30_001,))
    assert config.optim.position_lr_max_steps == 35_000
    assert config.densify.densify_until_iter == 15_000
    pruning = config.pruning
    assert (pruning.mask_from_iter, pruning.mask_until_iter) == (30_000, 35_000)
    assert pruning.lambda_mask * pruning.lambda_mask_factor == pytest.approx(0.02)
    # the published command's weight, and its length
    config = parse(
        "-s x --start-ply any.ply --preset published-post --lambda_mask 0.15 --iterations 32500"
    )
    pruning = config.pruning
    assert pruning.lambda_mask * pruning.lambda_mask_factor == pytest.approx(0.03)
    assert (pruning.mask_until_iter, pruning.mask_prune_iter) == (32_500, 0)
    assert parse("-s x --start_ply any.ply --method 3dgs").train.iterations == 35_000


def test_a_finished_ply_is_post_trained_and_resumed(
    scene: Path, finished_ply: Path, tmp_path: Path, write_published: Callable[..., None]
) -> None:
    args = ["-s", str(scene), "--eval", "--quiet", "--iterations", "30040", "--deterministic"]
    args += ["--mask_lr", "0.2", "--checkpoint_iterations", "30025", "30040"]
    out = tmp_path / "out"
    train.main([*args, "-m", str(out), "--start_ply", str(finished_ply)])
    config = json.loads((out / "config.json").read_text())
    assert (config["post_start"], config["sh_degree"], config["preset"]) == (30_000, 1, "post")
    history = json.loads((out / "history.json").read_text())
    assert [entry["step"] for entry in history["test"]] == [30_001, 30_040]
    before, after = (
        load_ply(finished_ply),
        load_ply(out / "point_cloud" / "iteration_30040" / "point_cloud.ply"),
    )
    assert 0 < len(after["means"]) < len(before["means"])
    assert after["shN"].shape[1:] == (3, 3)
    # the first evaluation is of the model as it came
    views = load_scene(scene, eval=True).test
    scores = evaluate_views(Gaussians.from_tensors(before), views, ImageLoader(views))
    assert history["test"][0]["psnr"] == pytest.approx(mean_scores(scores)["psnr"], abs=1e-3)

    # the run goes on as post-training, with the bytes of the uninterrupted one
    again = tmp_path / "again"
    command = resume_command(
        [*args, "--start_ply", str(finished_ply)], again, out / "chkpnt30025.pth"
    )
    assert "--start_ply" not in command
    train.main(command_flags(command))
    file = Path("point_cloud") / "iteration_30040" / "point_cloud.ply"
    assert (again / file).read_bytes() == (out / file).read_bytes()

    # and its end is a beginning for another method
    write_published(tmp_path / "chkpnt.pth", load_checkpoint(out / "chkpnt30040.pth"))
    line = f"-s {scene} -m {tmp_path}/3dgs --quiet --method 3dgs --iterations 30043"
    train.main([*shlex.split(line), "--start_checkpoint", str(tmp_path / "chkpnt.pth")])
    plain = load_ply(tmp_path / "3dgs" / "point_cloud" / "iteration_30043" / "point_cloud.ply")
    assert len(plain["means"]) == len(after["means"])


def test_a_run_within_a_budget(scene: Path, tmp_path: Path) -> None:
    line = f"-s {scene} -m {tmp_path}/out --quiet --iterations 30 --schedule published"
    line += " --densifier taming --budget 6050 --densify_from_iter 5 --densify_until_iter 25"
    train.main([*shlex.split(line), "--densification_interval", "10", "--score_views", "3"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["densifier"], config["densify"]["budget"]) == ("taming", "6050")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["n_gaussians"] == [6000, 6037, 6050]
    with pytest.raises(SplatrimError, match="--budget 5999 is less than the 6000 Gaussians"):
        train.main([*shlex.split(line.replace("6050", "5999")), "-m", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_changed_settings_are_warned_of(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = f"-s {scene} --quiet --iterations 4 --checkpoint_iterations 2 --schedule published"
    train.main([*shlex.split(line), "-m", str(tmp_path / "a")])
    resumed = [*shlex.split(line), "--start_checkpoint", str(tmp_path / "a" / "chkpnt2.pth")]
    train.main([*resumed, "-m", str(tmp_path / "b")])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    train.main([*resumed, "-m", str(tmp_path / "c"), "--lambda_mask", "0.1", "--opacity_lr", "0.1"])
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    said = "settings differ from the checkpoint's: opacity_lr 0.1 (was 0.05), lambda_mask 0.1 (was"
    assert record.getMessage().startswith(said)


@pytest.mark.gpu
def test_kernels_train_as_the_reference_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 iterations by Triton and by PyTorch: the same test PSNR within 0.1 dB.

    Runs whose starts differ by 1e-7 end 0.13 dB apart with either of them (standard deviation), so
    means are compared, and twice their standard error comes on top.
    """
    folder = tmp_path / "scene"
    write_demo_scene(folder, width=120, height=90)

    def psnr(run: int) -> float:
        line = f"-s {folder} -m {tmp_path / 'model'} --eval --quiet --iterations 300"
        trainer = train.build_trainer(train.parse([*line.split(), "--no_cuda_graphs"]))
        means = trainer.gaussians.params["means"]
        noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(run))
        with torch.no_grad():
            means.mul_(1 + 1e-7 * noise.to(means.device))
        trainer.fit()
        shutil.rmtree(tmp_path / "model")
        return trainer.tracker.history["test"][-1]["psnr"]

    by_kernels = [psnr(run) for run in range(8)]
    monkeypatch.setattr("kernels.backend.has_triton", lambda: False)
    monkeypatch.setattr("kernels.pipeline.rasterize", None)  # not to be called
    kernels.caches.clear()  # the backend of a kind of call is remembered
    by_reference = [psnr(run) for run in range(4)]
    error = sum(statistics.variance(x) / len(x) for x in (by_kernels, by_reference)) ** 0.5
    difference = statistics.mean(by_kernels) - statistics.mean(by_reference)
    assert min(by_kernels) > 20.0
    assert abs(difference) < 0.1 + 2 * error
