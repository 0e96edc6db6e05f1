"""Bad input: exit code 2, one line that names the value and the remedy, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memfold import cli

Make = Callable[[Path, Path, Path], list[str]]  # (pipeline, data, scratch) -> argv


def audit(pipeline: Path | str, data: Path | str, scratch: Path, *more: str) -> list[str]:
    """Make the arguments of an audit."""
    return ["audit", str(pipeline), "--data", str(data), "--out", str(scratch / "out"), *more]


def written(path: Path, content: bytes | str) -> Path:
    """Write a file and give its path."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(path: Path, array: np.ndarray, **options: bool) -> Path:
    """Write an .npy file and give its path."""
    np.save(path, array, **options)
    return path


def folder(path: Path, **files: np.ndarray | bytes) -> Path:
    """Make a folder of image files."""
    path.mkdir()
    for name, content in files.items():
        target = path / f"{name}.png"
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            Image.fromarray(content).save(target)
    return path


def truncated(path: Path) -> Path:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def with_pickle(pipeline: Path, scratch: Path) -> Path:
    """Copy the pipeline with its weights as a pickle."""
    copy = shutil.copytree(pipeline, scratch / "pickled")
    (weights,) = (copy / "unet").glob("*.safetensors")
    weights.unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    return copy


def with_cut_weights(pipeline: Path, scratch: Path) -> Path:
    """Copy the pipeline with half of its weights."""
    copy = shutil.copytree(pipeline, scratch / "cut")
    truncated(next((copy / "unet").glob("*.safetensors")))
    return copy


def with_index(pipeline: Path, scratch: Path, text: str) -> Path:
    """Copy the pipeline with another model_index.json."""
    copy = shutil.copytree(pipeline, scratch / "index")
    (copy / "model_index.json").write_text(text)
    return copy


def overlapping(data: Path, scratch: Path) -> Path:
    """Make held-out images of which one stands in the training data."""
    train = np.load(data / "train.npz")["images"]
    held = np.load(data / "holdout.npz")["images"]
    return saved(scratch / "held.npy", np.concatenate([held, train[3:4]]))


GREY = np.zeros((30, 8, 8), np.uint8)
T = "--train-points"

CASES: dict[str, tuple[Make, str]] = {
    "missing model": (lambda p, d, s: audit(s / "no", d / "train.npz", s, T), "no: no such dir"),
    "model is a file": (lambda p, d, s: audit(d / "train.npz", d / "train.npz", s, T), "is a file"),
    "no pipeline": (lambda p, d, s: audit(d, d / "train.npz", s, T), "model_index.json"),
    "damaged index": (
        lambda p, d, s: audit(with_index(p, s, "{"), d / "train.npz", s, T),
        "is damaged",
    ),
    "pickle": (lambda p, d, s: audit(with_pickle(p, s), d / "train.npz", s, T), "allow-pickle"),
    "cut weights": (lambda p, d, s: audit(with_cut_weights(p, s), d / "train.npz", s, T), "cut"),
    "missing data": (lambda p, d, s: audit(p, s / "none", s, T), "none"),
    "empty folder": (lambda p, d, s: audit(p, folder(s / "empty"), s, T), "empty"),
    "corrupt png": (
        lambda p, d, s: audit(p, folder(s / "bad", a=GREY[0], b=b"no png"), s, T),
        "b.png",
    ),
    "mixed sizes": (
        lambda p, d, s: audit(p, folder(s / "mix", a=GREY[0], b=np.zeros((9, 9), np.uint8)), s, T),
        "b.png",
    ),
    "nan array": (
        lambda p, d, s: audit(p, saved(s / "n.npy", np.full((30, 8, 8), np.nan)), s, T),
        "NaN",
    ),
    "values out of range": (
        lambda p, d, s: audit(p, saved(s / "v.npy", np.full((30, 8, 8), 7.0)), s, T),
        "7",
    ),
    "object array": (
        lambda p, d, s: audit(
            p, saved(s / "o.npy", np.array([{}, {}], dtype=object), allow_pickle=True), s, T
        ),
        "o.npy",
    ),
    "cut npz": (
        lambda p, d, s: audit(p, truncated(Path(shutil.copy(d / "train.npz", s))), s, T),
        "train.npz",
    ),
    "npz without images": (lambda p, d, s: audit(p, _npz(s / "x.npz"), s, T), "images"),
    "wrong size": (
        lambda p, d, s: audit(p, saved(s / "w.npy", np.zeros((30, 9, 9), np.uint8)), s, T),
        "--resize",
    ),
    "wrong channels": (
        lambda p, d, s: audit(p, saved(s / "c.npy", np.zeros((30, 3, 8, 8), np.uint8)), s, T),
        "--resize",
    ),
    "wrong dims": (lambda p, d, s: audit(p, saved(s / "d.npy", np.zeros(8)), s, T), "d.npy"),
    "zero samples": (
        lambda p, d, s: audit(p, saved(s / "z.npy", np.zeros((0, 8, 8), np.uint8)), s, T),
        "z.npy",
    ),
    "few training images": (
        lambda p, d, s: audit(p, saved(s / "f.npy", GREY[:5]), s, T),
        "--neighbors",
    ),
    "sigma below range": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--sigma", "0.0001"),
        "choose one from",
    ),
    "sigma above range": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--sigma", "1e9"),
        "choose one from",
    ),
    "sigma negative": (lambda p, d, s: audit(p, d / "train.npz", s, T, "--sigma", "-1"), "-1"),
    "sigma is no number": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--sigma", "small"),
        "'--sigma'",
    ),
    "unknown estimator": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--estimator", "nb"),
        "dsm, flipd, spectral",
    ),
    "unknown data estimator": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--data-estimator", "umap"),
        "mle, lpca, twonn, empirical",
    ),
    "unknown option": (lambda p, d, s: audit(p, d / "train.npz", s, T, "--sgima", "1"), "--sgima"),
    "unknown kind": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--fail-on", "overfit"),
        "overfitting, data",
    ),
    "no subjects": (lambda p, d, s: audit(p, d / "train.npz", s), "--generate N"),
    "two kinds of subjects": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--generate", "3"),
        "choose one of",
    ),
    "generate zero": (lambda p, d, s: audit(p, d / "train.npz", s, "--generate", "0"), "1 or more"),
    "alpha": (lambda p, d, s: audit(p, d / "train.npz", s, T, "--alpha", "5"), "0.05"),
    "one noise": (lambda p, d, s: audit(p, d / "train.npz", s, T, "--noises", "1"), "2 or more"),
    "holdout overlaps": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--holdout", str(overlapping(d, s))),
        "must be unseen",
    ),
    "truth is no truth": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--truth", str(written(s / "t", "[]"))),
        "duplicated",
    ),
    "truth beyond the data": (
        lambda p, d, s: audit(
            p,
            d / "train.npz",
            s,
            T,
            "--truth",
            str(written(s / "t", json.dumps({"duplicated": [], "rare": [999]}))),
        ),
        "999",
    ),
    "out is a file": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--out", str(written(s / "o", ""))),
        "is a file",
    ),
    "out below a file": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--out", str(written(s / "o", "") / "x")),
        "cannot be written",
    ),
    "class of a model without": (
        lambda p, d, s: audit(p, d / "train.npz", s, T, "--class-label", "3"),
        "takes no classes",
    ),
    "part of an earlier run is a link": (
        lambda p, d, s: _with_link(audit(p, d / "train.npz", s, T, "--noises", "2"), s / "out"),
        "band-00000000.parquet is a symbolic link; remove it",
    ),
    "report of nothing": (lambda p, d, s: ["report", str(s)], "audit.json"),
    "no command": (lambda p, d, s: ["audti"], "audti"),
    "lid of nothing": (lambda p, d, s: ["lid", str(p), str(s / "gone")], "gone"),
    "lid, figure suffix": (
        lambda p, d, s: ["lid", str(p), str(d / "samples"), "--figure", str(s / "x.bmp")],
        ".svg",
    ),
    "data-lid, tolerance": (
        lambda p, d, s: ["data-lid", str(d / "train.npz"), "--tolerance", "2"],
        "0.05",
    ),
    "data-lid, suffix": (
        lambda p, d, s: ["data-lid", str(d / "train.npz"), "--out", str(s / "x.xls")],
        ".csv",
    ),
}


def _with_link(argv: list[str], out: Path) -> list[str]:
    """Plant a link to a file of the user's where a part would stand."""
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "band-00000000.parquet").symlink_to(written(out.parent / "mine", "text"))
    return argv


def _npz(path: Path) -> Path:
    np.savez(path, pictures=GREY)
    return path


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str,
    pipeline: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message names the value; there is no traceback and no result that pretends to be one."""
    make, expected = CASES[name]
    monkeypatch.setattr("sys.argv", ["memfold", *make(pipeline, data, tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("memfold: ")]
    assert stop.value.code == 2, err
    assert len(lines) == 1, err
    assert expected in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "audit.json").exists()
