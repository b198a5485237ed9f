"""Models: what a run leaves, how it is found, what it says of images, who is champion, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COLOURS, draw
from helpers import QUIET, listening, small_network
from PIL import Image
from safetensors.torch import load_file, save_file

from runner import load_model
from runner.cli import main
from runner.config.parser import parse
from runner.models import checkpoint
from runner.portable.classifier import BATCH_SIZE, Classifier, ModelError, metadata_digest
from runner.serving import packaging
from runner.serving.predictor import LoadedModel
from runner.tracking import model_registry
from runner.tracking.mlflow_server import server
from runner.training.seeds import train as train_all
from runner.utils.errors import UserError

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, and no store but the one that a test names."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    """A folder with pictures/, and mlruns/ with one finished run of them, its model registered as `small`."""
    folder = tmp_path_factory.mktemp("models")
    for label in COLOURS:
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(folder / "pictures" / label / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        train_all(parse(words(folder))[0], 1, accelerator, QUIET)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return [
        *("--name", "small", "--data.kind", "folder", "--data.root", str(folder / "pictures")),
        *("--cache", str(folder / "cache"), "--tracking.root", str(folder / "mlruns")),
        *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
        *(
            "--model.width",
            "16",
            "--augment.resize",
            "36",
            "--augment.crop",
            "32",
            "--augment.views",
            "clean",
        ),
        *(
            "--train.epochs",
            "3",
            "--train.batch_size",
            "8",
            "--train.precision",
            "no",
            "--features.batch_size",
            "8",
        ),
        *("--features.compile", "false", "--tracking.gallery", "0", *more),
    ]


@pytest.fixture
def command(place: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("predict", …)` on the module's run: status, standard output and standard error."""

    def call(verb: str, *rest: str, root: Path | None = None) -> tuple[int, str, str]:
        status = main.main([verb, *rest, "--tracking.root", str(root or place / "mlruns")])
        return status, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def client(place: Path) -> Any:
    return server(str(place / "mlruns")).connect()


@pytest.fixture(scope="module")
def model(place: Path) -> LoadedModel:
    return load_model(tracking=str(place / "mlruns"), device="cpu")


@pytest.fixture(scope="module")
def logged(client: Any) -> Path:
    """The folder of the logged model."""
    version = client.get_model_version_by_alias("small", "champion")
    return Path(version.source.removeprefix("file://"))


@pytest.fixture(scope="module")
def some(place: Path) -> list[Path]:
    """Three images, one a class."""
    return [place / "pictures" / label / "00.png" for label in sorted(COLOURS)]


def numbers(model: LoadedModel, paths: list[Path]) -> list[tuple[tuple[str, float], ...]]:
    return [tuple((guess.name, guess.probability) for guess in each.top) for each in model.predict(paths, 9)]


def refused(outcome: tuple[int, str, str]) -> str:
    """The one sentence of a command that was refused."""
    status, _, err = outcome
    assert status == 2, outcome
    assert "Traceback" not in err
    *_, last = err.strip().splitlines()
    assert last.startswith("runner: ")
    return last.removeprefix("runner: ")


# What a run leaves


def test_a_finished_run_leaves_a_model_and_a_champion(client: Any, logged: Path) -> None:
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    (found,) = client.search_logged_models([run.info.experiment_id])
    assert run.data.tags[model_registry.MODEL_TAG] == found.model_id
    assert found.status == "READY"
    metrics = {metric.key: metric.value for metric in found.metrics}
    assert metrics["val/top1"] == run.data.metrics["val/best/top1"]
    version = client.get_model_version_by_alias("small", "champion")
    assert (version.version, version.run_id) in (("1", run.info.run_id), (1, run.info.run_id))
    assert "is the champion, as the first" in run.data.tags["runner.champion"]
    about = json.loads((logged / "artifacts" / "classifier" / "model.json").read_text())
    assert about["classes"] == sorted(COLOURS)
    assert about["transform"] == {"resize": 36, "crop": 32, "interpolation": "bilinear"}
    assert about["run"] == run.info.run_id


def test_no_file_of_a_model_is_a_pickle(logged: Path) -> None:
    files = [path for path in logged.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".py", ".json", ".yaml", ".txt", ".safetensors"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), path


ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "runner":
            raise ImportError("the runner is not installed")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1] + "/code")
import json, pathlib, torch
from portable.classifier import Classifier
classifier = Classifier.load(pathlib.Path(sys.argv[1]) / "artifacts" / "classifier", "cpu")
views = torch.stack([classifier.open(path) for path in sys.argv[2:]])
print(json.dumps(classifier.top(views, 9)))
assert not [name for name in sys.modules if name.partition(".")[0] in ("runner", "accelerate", "mlflow", "optuna")]
"""


def test_a_model_can_be_used_without_the_runner(logged: Path, model: LoadedModel, some: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(logged), *map(str, some)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = [tuple((name, value) for name, value in row) for row in json.loads(done.stdout)]
    assert told == numbers(model, some)


@pytest.mark.parametrize("head", ["report", "pooled"])
@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_a_model_computes_what_the_trained_network_did(arch: str, head: str, tmp_path: Path) -> None:
    network = small_network(arch=arch, head=head).eval()
    use = {
        "name": "x",
        "transform": {"resize": 32, "crop": 32, "interpolation": "bilinear"},
        "precision": "no",
    }
    told = packaging.describe(network, use, epoch=1, val={})
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(packaging.to_classifier(network, told, "cpu").network(images), network(images))


def test_predictions_are_the_runs_own(place: Path, client: Any, model: LoadedModel) -> None:
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    text = Path(client.download_artifacts(run.info.run_id, "predictions.csv")).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 9
    said = model.predict([place / "pictures" / row["path"] for row in rows])
    for row, each in zip(rows, said, strict=True):
        assert each.top[0].name == row["predicted"]
        assert each.top[0].probability == pytest.approx(float(row["probability"]), abs=1e-5)


# What it says does not depend on what else is asked


@pytest.mark.parametrize("count", [1, 2, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE + 3])
def test_an_image_is_told_alike_in_any_batch(
    model: LoadedModel, some: list[Path], count: int, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [some[place % 3] for place in range(count)]
    alone = {path: numbers(model, [path])[0] for path in some}
    paths.insert(count // 2, tmp_path / "broken.png")
    said = model.predict(paths, 9)
    assert [each.path for each in said] == [str(path) for path in paths]
    for path, each in zip(paths, said, strict=True):
        if path.name == "broken.png":
            assert each.error
        else:
            assert tuple((guess.name, guess.probability) for guess in each.top) == alone[path]


def test_a_model_is_found_by_all_its_names(
    place: Path, model: LoadedModel, client: Any, logged: Path, some: list[Path], tmp_path: Path
) -> None:
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    root = str(place / "mlruns")
    checkpoints = Path(client.download_artifacts(run.info.run_id, "checkpoints"))
    wanted = numbers(model, some)
    for reference in (
        run.info.run_id,
        run.info.run_id[:8],
        "latest",
        "small@champion",
        "small@1",
        "models:/small@champion",
        str(logged),
        str(logged / "artifacts" / "classifier"),
        str(checkpoints / "best.safetensors"),
        str(checkpoints),
    ):
        assert numbers(load_model(reference, root, "cpu"), some) == wanted, reference


def test_importing_the_package_imports_no_torch() -> None:
    code = "import runner, sys; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


# The verb


def test_json_is_bare(command: Command, some: list[Path]) -> None:
    status, out, err = command("predict", *map(str, some), "--json", "--top", "2")
    assert status == 0
    told = json.loads(out)
    assert [each["path"] for each in told] == [str(path) for path in some]
    assert all(set(each) == {"path", "top"} and len(each["top"]) == 2 for each in told)
    assert set(told[0]["top"][0]) == {"class", "probability"}
    assert "run " in err
    assert "small" in err, "it says whose model it is"


def test_csv_is_bare(command: Command, some: list[Path]) -> None:
    status, out, _ = command("predict", str(some[0]), "--csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert (status, rows[0]) == (0, ["path", "rank", "class", "probability"])
    assert [row[1] for row in rows[1:]] == ["1", "2", "3"]
    assert sum(float(row[3]) for row in rows[1:]) == pytest.approx(1, abs=1e-5)


def test_a_folder_and_a_pattern_stand_for_their_images(command: Command, place: Path) -> None:
    pictures = place / "pictures"
    whole = json.loads(command("predict", str(pictures), "--json")[1])
    assert len(whole) == 36
    some = json.loads(command("predict", str(pictures / "*" / "0[01].png"), str(pictures), "--json")[1])
    assert len(some) == 36, "each once"
    assert some[0]["path"].endswith("00.png")


def test_bad_files_do_not_stop_the_others(command: Command, some: list[Path], tmp_path: Path) -> None:
    bad = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": some[0].read_bytes()[:60],
        "odd\nname.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    status, out, err = command("predict", str(tmp_path), str(some[0]), "--json")
    assert status == 1
    assert [each["path"] for each in json.loads(out)] == [str(some[0])]
    assert "Traceback" not in err
    for name in ("empty.png is empty", "text.png is not an image", "cut.png", "bomb.png cannot be decoded"):
        assert name in err
    assert "None of 5 files" in refused(command("predict", str(tmp_path), "--json"))


def test_names_in_other_languages(command: Command, some: list[Path], tmp_path: Path) -> None:
    first = sorted(COLOURS)[0]
    own = tmp_path / "names.csv"
    own.write_text(f'class,name\r\n{first},"красный, да"\r\nunknown,x\r\n', encoding="utf-8-sig")
    _, out, _ = command("predict", str(some[0]), "--json", "--lang", str(own))
    assert {guess["class"] for guess in json.loads(out)[0]["top"]} == set(COLOURS)
    said = {guess["name"] for guess in json.loads(out)[0]["top"]}
    assert said == {"красный, да", *sorted(COLOURS)[1:]}
    assert "names none of the model's classes" in refused(command("predict", str(some[0]), "--lang", "zh"))
    assert "There are no names in 'de'" in refused(command("predict", str(some[0]), "--lang", "de"))
    own.write_text("a,b\n1,2\n")
    assert "must have the header class,name" in refused(command("predict", str(some[0]), "--lang", str(own)))


def test_pictures_go_along(command: Command, some: list[Path], tmp_path: Path) -> None:
    status, out, _ = command("predict", *map(str, some), "--explain", str(tmp_path / "out"))
    assert status == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3, "of one name, in three folders"
    assert out.endswith(f"pictures in {tmp_path / 'out'}: 3\n")


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (["nothing.png"], "There is no nothing.png"),
        (["*.nothing"], "matches no image"),
        (["--top", "0", "x.png"], "whole number from 1"),
        (["--json", "--csv", "x.png"], "not allowed with"),
        ([str(Path(__file__).parent.parent / "experiments")], "holds no images"),
    ],
)
def test_bad_words_are_refused(command: Command, rest: list[str], sentence: str) -> None:
    assert sentence in refused(command("predict", *rest))


def test_unknown_models_are_refused(command: Command, some: list[Path], tmp_path: Path) -> None:
    image = str(some[0])

    def said(reference: str) -> str:
        return refused(command("predict", image, "--model", reference))

    assert "did you mean 'small'?" in said("smal@champion")
    assert "aliases champion" in said("small@best")
    assert "There is no run 'nothing'" in said("nothing")
    assert "There is no nowhere/model" in said("nowhere/model")
    (tmp_path / "model.pth").write_bytes(b"")
    assert "can run code" in said(str(tmp_path / "model.pth"))
    assert "There are no records" in refused(command("predict", image, root=tmp_path / "none"))
    server(str(tmp_path / "fresh")).connect()
    assert "There is no model yet" in refused(command("predict", image, root=tmp_path / "fresh"))


def test_a_run_without_a_model_is_refused(command: Command, some: list[Path], tmp_path: Path) -> None:
    fresh = server(str(tmp_path))
    client = fresh.connect()
    run = client.create_run(fresh.experiment_id(client, "x"), run_name="bare")
    client.set_terminated(run.info.run_id)
    sentence = refused(command("predict", str(some[0]), "--model", "bare", root=tmp_path))
    assert "has no model and no checkpoint" in sentence


# Files that were tampered with


@pytest.fixture
def copy(logged: Path, tmp_path: Path) -> Path:
    """A copy of the model's two files."""
    return Path(shutil.copytree(logged / "artifacts" / "classifier", tmp_path / "copy"))


def edited(copy: Path, **changes: Any) -> None:
    about = json.loads((copy / "model.json").read_text())
    about |= changes
    (copy / "model.json").write_text(json.dumps({**about, "digest": metadata_digest(about)}))


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def tamper_bit(copy: Path) -> None:
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "model.safetensors").write_bytes(content)


def tamper_length(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:1000])
    edited(copy, sha256=digest(copy / "model.safetensors"))


def tamper_pickle(copy: Path) -> None:
    torch.save({"x": torch.zeros(1)}, copy / "model.safetensors")
    edited(copy, sha256=digest(copy / "model.safetensors"))


def tamper_tensors(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("classifier.4.bias")
    save_file(tensors, copy / "model.safetensors")
    edited(copy, sha256=digest(copy / "model.safetensors"))


def swap(copy: Path) -> None:
    about = json.loads((copy / "model.json").read_text())
    about["classes"].reverse()
    (copy / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (tamper_bit, "its digest differs"),
        (tamper_length, "is damaged"),
        (tamper_pickle, "is damaged"),
        (tamper_tensors, "holds no model of this version"),
        (lambda copy: (copy / "model.safetensors").unlink(), "There is no"),
        (lambda copy: (copy / "model.json").write_text("{"), "holds no model of this version"),
        (lambda copy: (copy / "model.json").write_text("[]"), "holds no model of this version"),
        (lambda copy: edited(copy, format="other"), "another version"),
        (swap, "its digest differs"),
        (lambda copy: edited(copy, classes=["a", "b"]), "holds no model of this version"),
        (lambda copy: edited(copy, network={"arch": "resnet18"}), "holds no model of this version"),
        (lambda copy: edited(copy, transform={"resize": 1}), "holds no model of this version"),
    ],
)
def test_tampered_models_are_refused(copy: Path, tamper: Callable[[Path], Any], sentence: str) -> None:
    tamper(copy)
    with pytest.raises(ModelError, match=sentence):
        Classifier.load(copy, "cpu")
    with pytest.raises(UserError, match=sentence):
        load_model(copy, device="cpu")


def test_a_checkpoint_without_its_transform_is_refused(tmp_path: Path) -> None:
    network = small_network()
    checkpoint.save_frozen(network, tmp_path)
    checkpoint.save(network, tmp_path / "best.safetensors", 1, {}, checkpoint.frozen_digest(network), {})
    with pytest.raises(UserError, match="before checkpoints held their transform"):
        load_model(tmp_path / "best.safetensors", device="cpu")


# The registry


def new_run(client: Any, store: Any) -> str:
    run = client.create_run(store.experiment_id(client, "crown"))
    return str(run.info.run_id)


def told(value: float, manifest: str = "m", name: str = "crown") -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {"val/top1": value, "val/balanced_accuracy": 1 - value},
        "score": "val/top1",
        "value": value,
        "manifest": manifest,
        "step": 3,
        "time": 1_700_000_000_000,
    }


def test_names_that_mlflow_does_not_take_are_changed() -> None:
    assert model_registry.registered_name("a:b") == "a-b"


def test_a_run_logs_no_model_where_that_is_not_wanted(
    place: Path, client: Any, accelerator: Any, tmp_path: Path
) -> None:
    before = len(client.search_model_versions("name = 'small'"))
    more = ("--tracking.model", "false", "--train.epochs", "1", "--name", "other")
    train_all(parse(words(place, *more))[0], 1, accelerator, QUIET)
    assert len(client.search_model_versions("name = 'small'")) == before
    assert [each.name for each in client.search_registered_models()] == ["small"]


# Serving, and ONNX


@contextmanager
def served(place: Path, reference: str) -> Iterator[str]:
    """`mlflow models serve` on a free port: its address."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlruns' / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # as in an activated environment
    }
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", reference]
    words += ["--env-manager", "local", "--port", "{port}", "--workers", "1"]
    with listening(words, "/ping", place / "served.txt", environment) as address:
        yield address


def asked(address: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_mlflow_serves_the_champion(place: Path, model: LoadedModel, some: list[Path]) -> None:
    images = [b64encode(path.read_bytes()).decode() for path in some]
    wanted = [[name for name, _ in row] for row in numbers(model, some)]
    with served(place, "models:/small@champion") as address:
        status, said = asked(address, {"inputs": {"image": images}})
        assert status == 200, said
        assert [[guess["class"] for guess in each["top"]] for each in said["predictions"]] == wanted
        top = said["predictions"][0]["top"][0]
        assert top["probability"] == pytest.approx(numbers(model, some[:1])[0][0][1], abs=1e-6)
        table = {"columns": ["image"], "data": [[f"data:image/png;base64,{images[0]}"]]}
        status, said = asked(address, {"dataframe_split": table, "params": {"top": 1}})
        assert status == 200, said
        assert [guess["class"] for guess in said["predictions"][0]["top"]] == wanted[0][:1]
        for bad in ("no base64!", b64encode(b"no image").decode()):
            status, said = asked(address, {"inputs": {"image": [bad]}})
            assert status == 400
            assert "Image 0" in str(said)


def test_onnx_says_the_same(command: Command, model: LoadedModel, some: list[Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    status, out, _ = command("export", "--onnx", str(tmp_path / "deep" / "model.onnx"))
    assert status == 0, out
    session = onnxruntime.InferenceSession(str(tmp_path / "deep" / "model.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(model.classes)
    for count in (1, 3):
        views = torch.stack([model.classifier.open(path) for path in some[:count]])
        (logits,) = session.run(None, {"images": views.numpy()})
        probabilities = torch.from_numpy(logits).double().softmax(1)
        for row, wanted in zip(probabilities, numbers(model, some[:count]), strict=True):
            given = sorted(zip(row.tolist(), model.classes, strict=True), reverse=True)
            assert [name for _, name in given] == [name for name, _ in wanted]
            assert [value for value, _ in given] == pytest.approx([value for _, value in wanted], abs=1e-4)


def test_onnx_files_that_disagree_are_not_handed_out(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "runner.cli.export.check", lambda *_: (_ for _ in ()).throw(RuntimeError("disagrees"))
    )
    status, _, err = command("export", "--onnx", str(tmp_path / "model.onnx"))
    assert status == 1
    assert "disagrees" in err
    assert not list(tmp_path.iterdir())


def test_export_says_what_is_missing(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[onnx]'" in refused(command("export", "--onnx", str(tmp_path / "x.onnx")))
