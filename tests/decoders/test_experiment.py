"""The experiment on digits, run small."""

import warnings

import pytest

from experiments.decoders.run import main
from memfold.linalg.rank import RankWarning


@pytest.mark.slow
def test_repeated_images_have_the_lowest_dimension(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # short training leaves bent decoders
        results = main(["--models", "VAE", "--speedup", "4", "--images", "10"])
    assert "| VAE | repeated |" in capsys.readouterr().out
    repeated, held_out = results["VAE", "repeated"], results["VAE", "held out"]
    for key in ("rank", "lpca"):
        assert float(repeated[key].mean()) < float(held_out[key].mean())
    assert float(repeated["error"].mean()) < float(held_out["error"].mean())
