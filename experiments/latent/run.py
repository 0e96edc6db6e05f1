"""Both LIDs in the latent space of a text-to-image model, and the verdict from them.

Ross et al. leave it open whether a caption that Stable Diffusion knows by heart is memorized by
overfitting or by the data: no estimator of LID_* serves in pixels of that size. In the autoencoder's
latents it does: LID_* is measured there by nearest neighbours among the latents of the training set,
LID_theta(x) and LID_theta(x | c) by the denoising loss and FLIPD, and the verdict compares both with
held-out images. Known by heart in the bundled pipeline: images that stand 150 times in the data
(verbatim) and garments that do so on varying backgrounds (template); not so: captions as frequent with
different garments (control), and ordinary images. A LoRA that was trained on 20 single images adds
the other kind: overfitting.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from experiments.finetune.audit import SIGMA, draw
from experiments.finetune.data import candidates, public
from experiments.finetune.lora import add_lora, base_pipeline, train_lora, weights_at
from experiments.finetune.run import PRIVATE, PUBLIC, STEPS
from experiments.kit import Run, interval, main, proportion
from experiments.latent.data import GROUPS, Training, subjects, training
from experiments.latent.figure import map_figure, pictures
from memfold import LPCA, MLE, EmpiricalLID, TextToImage, dsm_lid, features, flipd, judge
from memfold.linalg.neighbors import nearest
from memfold.memorization.mmh import Verdicts
from memfold.types import Estimate

OPEN = "left open in the paper"
KINDS = ("overfitting", "data", "none", "undetermined")
NEIGHBOURS = 20
EXTRA = (  # shown in the table; not what the verdict is meant to do
    "training images, without the caption", "generated images, against what new captions draw",
)  # fmt: skip


def experiment(run: Run) -> None:
    """Measure real and generated images, judge them, state the claims."""
    counts = run.pick(
        quick={"verbatim": 12, "template": 8, "control": 12, "ordinary": 20, "held out": 70},
        full={"verbatim": 30, "template": 25, "control": 40, "ordinary": 50, "held out": 100},
    )
    found = {
        kind: run.arrays(f"base-{kind}", measured, counts=counts, seed=run.seed,
                         generated=kind == "generated", weights={})
        for kind in ("real", "generated")
    }  # fmt: skip
    n, steps = (run.pick(quick=a, full=b) for a, b in (PRIVATE, STEPS))
    weights = run.arrays("lora", trained, n=n, steps=steps, seed=run.seed)
    few = {"private": n, "held out": counts["held out"]}
    tuned = run.arrays("tuned", measured, counts=few, seed=run.seed, generated=False,
                       weights=weights)  # fmt: skip
    report(run, found, tuned)


def trained(n: int, steps: int, seed: int) -> dict[str, Any]:
    """Train a LoRA on n images that stand once in the data, as the experiment `finetune` does."""
    made = train_lora(candidates(n, seed), public(PUBLIC, seed), steps, [steps], seed)
    return weights_at(made, steps)


def measured(
    counts: dict[str, int], seed: int, generated: bool, weights: dict[str, Any]
) -> dict[str, Any]:
    """Measure both LIDs at images of all groups; with a LoRA, at its private images too.

    Generated images are drawn under the same captions, and LID_* is that of the nearest training
    image, for held-out images too, as the audit does: a near copy's tiny distance is no lack of
    directions in the data. "new caption" is what the captions of the held-out images draw.
    """
    pipe = base_pipeline()
    model = TextToImage(add_lora(pipe, weights) if weights else pipe)
    rows = training(model, counts.get("private", 0), seed)
    found = subjects(model, rows, counts, seed)
    x, captions, groups = found.x, found.captions, found.groups.tolist()
    if generated:
        held = found.groups == "held out"
        captions = captions + [c for c, mine in zip(captions, held, strict=True) if mine]
        drawn = draw(model, [*found.captions], [seed])[:, 0]
        x = torch.cat([drawn[~held], x[held], drawn[held]])
        groups += ["new caption"] * int(held.sum())
    near, at = nearest(x.flatten(1), rows.x, 1)
    where = rows.x[at[:, 0]] if generated else x.flatten(1)
    out = theta(model, x, captions, seed, traces=not (generated or weights)) | star(
        rows, where, at[:, 0], captions, groups
    )
    out |= {"groups": np.array(groups), "near": near[:, 0] / x[0].numel() ** 0.5,
            "complexity": features(x, SIGMA), "images": model.decode(x).mean(1)}  # fmt: skip
    return out


def theta(
    model: TextToImage, x: torch.Tensor, captions: list[str], seed: int, *, traces: bool
) -> dict[str, Any]:
    """LID_theta with and without the caption, by the denoising loss; and by FLIPD if asked."""
    fresh = lambda: torch.Generator().manual_seed(seed)  # noqa: E731
    silent = dsm_lid(model.denoiser(None), x, SIGMA, generator=fresh())
    rows = zip(x, captions, strict=True)
    under, flipds = [], []
    for point, caption in tqdm(rows, desc="LID", total=len(x), unit="image"):
        denoiser = model.denoiser(caption)
        under.append(dsm_lid(denoiser, point[None], SIGMA, generator=fresh()))
        if traces:
            flipds.append(
                flipd(denoiser, point[None], SIGMA, trace="hutchinson", generator=fresh())
            )
    return {
        "theta": silent.lid, "theta_stderr": silent.stderr,
        "theta_c": torch.cat([e.lid for e in under]),
        "theta_c_stderr": torch.cat([e.stderr for e in under]),
        "flipd_c": torch.cat([e.lid for e in flipds]) if traces else [],
    }  # fmt: skip


def star(
    rows: Training, x: torch.Tensor, at: torch.Tensor, captions: list[str], groups: list[str]
) -> dict[str, Any]:
    """LID_* among all training latents, and among the rows of the image's own caption.

    The empirical denoiser leaves out one copy of each image's own row; the others do so themselves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses are what is looked for
        lid, stderr = MLE(NEIGHBOURS).fit(rows.x.numpy()).predict_with_stderr(x.numpy())
        scale = spread(rows.x, x[torch.from_numpy(np.array(groups) == "held out")])
        empirical = EmpiricalLID(scale, at="x").fit(without(rows.x, x, at).numpy())
        within = [
            MLE(NEIGHBOURS).fit(own.numpy()).predict(point[None].numpy())[0]
            if len(own := rows.of(caption)) > NEIGHBOURS
            else np.nan
            for point, caption in zip(x, captions, strict=True)
        ]
        return {
            "star": lid, "star_stderr": stderr, "scale": scale, "star_c": np.array(within),
            "star_lpca": LPCA().fit(rows.x.numpy()).predict(x.numpy()),
            "star_empirical": empirical.predict(x.numpy()),
        }  # fmt: skip


def without(rows: torch.Tensor, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Training rows less one copy of each image that is a row; `at` is its nearest row."""
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[at[(rows[at] == x).all(1)]] = False
    return rows[kept]


def spread(rows: torch.Tensor, held_out: torch.Tensor) -> float:
    """The sigma at which 20 neighbours of a held-out image share its weight, in the median.

    (d_20^2 - d_1^2) / 2 sigma^2 = 1, so that it looks at no image that is judged.
    """
    distance, _ = nearest(held_out, rows, NEIGHBOURS)
    between = distance[:, -1] ** 2 - distance[:, 0] ** 2
    return float((between.median() / 2).sqrt())


def estimate(found: dict[str, Any], name: str, rows: np.ndarray) -> Estimate:
    """Some rows of a measured LID."""
    lid, error = (torch.from_numpy(found[key][rows]) for key in (name, f"{name}_stderr"))
    return Estimate(lid, error, SIGMA, name)


def verdicts(found: dict[str, Any], name: str = "theta_c", reference: str = "held out") -> Verdicts:
    """Judge the images of `subjects_of` against a group that the model cannot have memorized."""
    mine, held = subjects_of(found), found["groups"] == reference
    return judge(
        estimate(found, name, mine),
        estimate(found, "star", mine),
        reference_model=estimate(found, name, held),
        reference_data=estimate(found, "star", held),
        complexity=found["complexity"][mine],
        reference_complexity=found["complexity"][held],
    )


def subjects_of(found: dict[str, Any]) -> np.ndarray:
    """Which images are judged: all but those that serve as reference."""
    return ~np.isin(found["groups"], ("held out", "new caption"))


def report(run: Run, found: dict[str, dict[str, Any]], tuned: dict[str, Any]) -> None:
    """State the claims, write the tables, draw the figures."""
    real = found["real"]
    measures(run, real)
    drawn = found["generated"]
    judged = {
        "training images": (real, verdicts(real)),
        "generated images": (drawn, verdicts(drawn)),
        "training images, without the caption": (real, verdicts(real, "theta")),
        "generated images, against what new captions draw": (
            drawn, verdicts(drawn, reference="new caption")),
        "the LoRA's private images": (tuned, verdicts(tuned)),
    }  # fmt: skip
    rows = []
    for name, (made, verdict) in judged.items():
        groups = made["groups"][subjects_of(made)]
        for group in dict.fromkeys(groups):
            kinds = verdict.kind[groups == group]
            rows.append([name, group, *(str((kinds == kind).sum()) for kind in KINDS)])
            if name not in EXTRA:
                share(run, name, str(group), kinds, verdict)
    run.table("verdicts", ["images", "group", *KINDS], rows)
    run.figure("map", map_figure(real, found["generated"], tuned))
    run.figure("pictures", pictures(drawn, verdicts(drawn)))


def measures(run: Run, real: dict[str, Any]) -> None:
    """Compare both LIDs of the groups, and write their table."""
    groups = real["groups"]
    for name, key, text in (
        ("LID_θ(x | c), denoising loss", "theta_c", "The model has few degrees of freedom"),
        ("LID_θ(x | c), FLIPD", "flipd_c", "So says FLIPD"),
        ("LID_*, MLE", "star", "The data have few degrees of freedom"),
    ):
        for group in ("verbatim", "template"):
            pair = real[key][groups == group], real[key][groups == "held out"]
            run.claim(f"{text} at {group} images", f"{name}, {group} less held out",
                      interval(pair, lambda a, b: a.mean() - b.mean(), seed=run.seed), below=0.0)  # fmt: skip
    names = {
        "theta": "LID_θ(x), denoising loss", "theta_c": "LID_θ(x \\| c), denoising loss",
        "flipd_c": "LID_θ(x \\| c), FLIPD", "star": "LID_*, MLE", "star_lpca": "LID_*, local PCA",
        "star_empirical": f"LID_*, empirical denoiser at σ = {float(real['scale']):.2f}",
        "star_c": "LID_* within the caption's rows, MLE",
    }  # fmt: skip
    rows = [
        [title, *(_cell(real[key][groups == group], run.seed) for group in GROUPS)]
        for key, title in names.items()
    ]
    run.table("lid", ["estimate", *GROUPS], rows)


def _cell(values: np.ndarray, seed: int) -> str:
    if not np.isfinite(values).all():
        return "-"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*interval(values, seed=seed))


def share(run: Run, name: str, group: str, kinds: np.ndarray, verdict: Verdicts) -> None:
    """State what the verdict should say of a group."""
    wanted = {"verbatim": "data", "template": "data", "private": "overfitting"}.get(group)
    if wanted:
        reason = "; ".join(sorted({r for r in verdict.reason if r}))
        run.claim(f"The verdict names {wanted} for {group}, {name}", f"share called {wanted}",
                  proportion(int((kinds == wanted).sum()), len(kinds)), above=0.5,
                  reason=f"reasons given: {reason}" if reason else "", source=OPEN)  # fmt: skip
    else:
        called = int(np.isin(kinds, KINDS[:2]).sum())
        run.claim(f"It spares {group}, {name}", "share called memorized",
                  proportion(called, len(kinds)), below=0.1)  # fmt: skip


if __name__ == "__main__":
    main(experiment, __file__)
