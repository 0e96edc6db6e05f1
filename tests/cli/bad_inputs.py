"""Bad inputs, a row each: the call, and a part of its one line.

`python -m tests.cli.bad_inputs` writes them, with the lines that they give, to docs/errors.md;
test_bad_inputs.py runs the same rows.
"""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
GREY = np.arange(30 * 64, dtype=np.uint64).reshape(30, 8, 8).astype(np.uint8)
AUDIT = "memfold audit model --data data.npy --train-points --out out"
PROMPTS = "memfold audit painter --prompts prompts.txt --out out"
LID = "memfold lid model data.npy"
DATA = "memfold data-lid data.npy"
BENCH = "memfold bench painter --prompts labelled.csv --out out"
EXPLAIN = "memfold explain painter --prompt words"
CALIBRATE = "memfold calibrate painter --prompts prompts.txt --out band.json"
MITIGATE = "memfold mitigate painter --prompt words --out out"
REPRODUCE = "memfold reproduce circle --quick --out out"

# Call of the command line -> a part of the line. Names of files are those that `world` makes.
COMMANDS = {
    # The command itself.
    "memfold": "a command is missing",
    "memfold audti": "'audti'",
    "memfold --nope": "--nope",
    "memfold audit": "Missing argument 'model'",
    "memfold lid model": "Missing argument 'images'",
    "memfold mitigate painter --prompt words": "--out",
    f"{AUDIT} --sgima 1": "--sgima",
    f"{AUDIT} --noises": "--noises",
    f"{AUDIT} --noises many": "'many'",
    f"{AUDIT} --noises 1e12": "'1e12'",
    f"{AUDIT} --seed 1.5": "'1.5'",
    f"{AUDIT} extra": "extra",
    # Numbers.
    f"{AUDIT} --noises 1000000000000": "--noises = 1000000000000; take 100000 or less",
    f"{AUDIT} --noises 1": "--noises = 1; take 2 or more",
    f"{AUDIT} --seed -1": "--seed = -1; take 0 or more",
    f"{AUDIT} --seed 1180591620717411303424": "--seed = 1180591620717411303424; take",
    f"{AUDIT} --limit -1": "--limit = -1; take 1 or more",
    f"{AUDIT} --limit 0": "--limit = 0; take 1 or more",
    f"{AUDIT} --neighbors 2": "--neighbors = 2; take 3 or more",
    f"{AUDIT} --neighbors 30": "--neighbors 30",
    f"{AUDIT} --max-reference 3": "--max-reference = 3; take 10 or more",
    f"{AUDIT} --batch-size 0": "--batch-size = 0; take 1 or more",
    f"{AUDIT} --estimator flipd --probes 0": "--probes = 0; take 2 or more",
    f"{AUDIT} --alpha 5": "--alpha = 5.0; choose a rate",
    f"{AUDIT} --alpha nan": "--alpha = nan; choose a rate",
    f"{AUDIT} --sigma -1": "--sigma = -1.0; choose",
    f"{AUDIT} --sigma nan": "--sigma = nan; choose",
    f"{AUDIT} --sigma inf": "--sigma = inf; choose",
    f"{AUDIT} --sigma 1e-9": "choose one from",
    f"{AUDIT} --sigma 1e9": "choose one from",
    f"{AUDIT} --class-label -1": "--class-label = -1; take 0 or more",
    f"{AUDIT} --class-label 3": "class_label = 3, but this model takes no classes",
    f"{AUDIT} --guidance-scale nan": "--guidance-scale = nan; choose",
    f"{AUDIT} --guidance-scale -3": "--guidance-scale = -3.0; choose",
    f"{AUDIT} --guidance-scale 3": "needs a class_label",
    f"{AUDIT} --device foo": "--device foo cannot be used on this machine; choose from cpu",
    f"{AUDIT} --device cuda": "--device cuda cannot be used on this machine; choose from cpu",
    f"{AUDIT} --device cuda:99": "--device cuda:99 cannot be used",
    f"{AUDIT} --device meta": "--device meta cannot be used",
    f"{AUDIT} --device ''": "--device '' is empty",
    # Choices.
    f"{AUDIT} --estimator nb": "'nb' is unknown; choose from dsm, flipd, spectral",
    f"{AUDIT} --estimator ''": "--estimator '' is empty",
    f"{AUDIT} --data-estimator umap": "'umap' is unknown; choose from mle, lpca",
    f"{AUDIT} --fail-on overfit": "'overfit' is unknown; choose from overfitting",
    f"{AUDIT} --fail-on memorized": "'memorized' is unknown; choose from overfitting",
    "memfold audit model --data data.npy --out out": "0 kinds of subjects",
    f"{AUDIT} --generate 3": "2 kinds of subjects",
    f"{AUDIT} --samples data.npy": "2 kinds of subjects",
    "memfold audit model --data data.npy --generate 0 --out out": "--generate = 0; take 1 or more",
    "memfold audit model --train-points --out out": "--data is missing",
    # Options that would do nothing.
    f"{AUDIT} --probes 8": "--probes 8 belongs to --estimator flipd",
    f"{AUDIT} --ordinary prompts.txt": "--ordinary needs --prompts FILE",
    f"{AUDIT} --images 2": "--images needs --prompts FILE",
    f"{AUDIT} --workers 0": "--workers needs --prompts FILE",
    f"{AUDIT} --steps 9": "--steps needs --prompts FILE",
    f"{AUDIT} --mitigate reword": "--mitigate needs --prompts FILE",
    f"{AUDIT} --no-explain": "--no-explain needs --prompts FILE",
    f"{PROMPTS} --noises 4": "--noises belongs to an audit of images; leave it",
    f"{PROMPTS} --estimator flipd": "--estimator belongs to an audit of images; leave it",
    f"{PROMPTS} --data-estimator mle": "--data-estimator belongs to an audit of images",
    f"{PROMPTS} --probes 4": "--probes belongs to an audit of images; leave it",
    f"{PROMPTS} --neighbors 9": "--neighbors belongs to an audit of images; leave it",
    f"{PROMPTS} --batch-size 9": "--batch-size belongs to an audit of images; leave it",
    f"{PROMPTS} --resize": "--resize belongs to an audit of images; leave it",
    f"{PROMPTS} --sigma 1": "--sigma belongs to an audit of images; leave it",
    f"{PROMPTS} --generate 9": "--generate belongs to an audit of images; leave it",
    f"{PROMPTS} --train-points": "--train-points belongs to an audit of images; leave it",
    f"{PROMPTS} --truth truth.json": "--truth belongs to an audit of images; leave it",
    f"{PROMPTS} --class-label 1": "--class-label belongs to an audit of images; leave it",
    f"{PROMPTS} --holdout data.npy": "--holdout belongs to an audit of images; leave it",
    f"{PROMPTS} --embedding e.pt": "--embedding compares with training images; give",
    # Places of results.
    "memfold audit model --data data.npy --train-points --out ''": "--out '' is empty",
    "memfold audit model --data data.npy --train-points --out data.npy": "is a file; choose",
    "memfold audit model --data data.npy --train-points --out data.npy/x": "data.npy is a file",
    "memfold audit model --data data.npy --train-points --out nowhere": "a link to nowhere; choose",
    "memfold audit model --data data.npy --train-points --out loop": "a link to nowhere; choose",
    "memfold audit model --data data.npy --train-points --out /proc/x": "/proc/x cannot be written",
    f"{AUDIT} --title $'\\xff'": "is no UTF-8 text",
    # The model.
    "memfold audit none --data data.npy --train-points --out out": "none: no such directory",
    "memfold audit data.npy --data data.npy --train-points --out out": "data.npy is a file; pass",
    "memfold audit folder --data data.npy --train-points --out out": "model_index.json is missing",
    "memfold audit cut-model --data data.npy --train-points --out out": "cut-model",
    "memfold audit deep-model --data data.npy --train-points --out out": "is damaged",
    "memfold audit list-model --data data.npy --train-points --out out": "is damaged",
    "memfold audit huge-model --data data.npy --train-points --out out": "sample_size = 1000000",
    "memfold audit nan-model --data data.npy --train-points --out out": "sample_size = inf",
    "memfold audit pickled --data data.npy --train-points --out out": "--allow-pickle",
    "memfold audit '' --data data.npy --train-points --out out": "--model '' is empty",
    "memfold audit painter --data data.npy --train-points --out out": "text-to-image pipeline",
    "memfold audit model --prompts prompts.txt --out out": "takes no prompt",
    # Images.
    "memfold audit model --data none --train-points --out out": "none does not exist",
    "memfold audit model --data '' --train-points --out out": "--data '' is empty",
    "memfold audit model --data empty --train-points --out out": "empty holds no images",
    "memfold audit model --data few.npy --train-points --out out": "holds 5 images, fewer",
    "memfold data-lid none": "none does not exist",
    "memfold data-lid nan.npy": "holds NaN",
    "memfold data-lid floats.npy": "holds floats from 0 to 255; scale",
    "memfold data-lid ints.npy": "holds int64; convert",
    "memfold data-lid objects.npy": "holds Python objects",
    "memfold data-lid cut.npz": "cut.npz cannot be read",
    "memfold data-lid other.npz": "has no array 'images'",
    "memfold data-lid none.npy": "none.npy does not exist",
    "memfold data-lid zero.npy": "zero.npy cannot be read",
    "memfold data-lid flat.npy": "has the shape (64,)",
    "memfold data-lid noimages.npy": "there is no image in it",
    "memfold data-lid corrupt": "b.png",
    "memfold data-lid zero-bytes": "b.png",
    "memfold data-lid bomb": "bomb.png",
    "memfold data-lid sizes": "different sizes",
    "memfold data-lid deep16": "more than 8 bits",
    "memfold data-lid moving": "more than one frame",
    "memfold data-lid bytes": r"'\udcff.png' is no UTF-8 text",
    "memfold data-lid looped": "a.png",
    "memfold data-lid text.xyz": "the suffix '.xyz' is not one of",
    "memfold data-lid cut.parquet": "cannot be read as Parquet",
    f"{LID.replace('data.npy', 'wide.npy')}": "9 x 9",
    f"{LID.replace('data.npy', 'one')}": "1 x 1",
    # lid, data-lid and report.
    f"{LID} --out table.xlsx": "--out table.xlsx: write to a .parquet or .csv file",
    f"{LID} --out ''": "--out '' is empty",
    f"{LID} --out none/table.csv": "there is no directory",
    f"{LID} --out folder.csv": "is a directory; name a file",
    f"{LID} --figure curve.png": "--figure curve.png: write to an .svg file",
    f"{LID} --figure data.npy/curve.svg": "--figure data.npy/curve.svg cannot be written",
    f"{LID} --estimator nb": "'nb' is unknown; choose from dsm",
    f"{LID} --noises 0": "--noises = 0; take 2 or more",
    f"{LID} --limit -1": "--limit = -1; take 1 or more",
    f"{LID} --seed -1": "--seed = -1; take 0 or more",
    f"{LID} --sigma 0": "--sigma = 0.0; choose",
    f"{LID} --sigma 1e9": "choose one from",
    f"{LID} --device cuda": "--device cuda cannot be used",
    f"{LID} --class-label 1": "takes no classes",
    f"{DATA} --tolerance 2": "--tolerance = 2.0; choose",
    f"{DATA} --tolerance nan": "--tolerance = nan; choose",
    f"{DATA} --neighbors 2": "--neighbors = 2; take 3 or more",
    f"{DATA} --neighbors 30": "too few for --neighbors 30",
    f"{DATA} --limit -1": "--limit = -1; take 1 or more",
    f"{DATA} --estimator umap": "'umap' is unknown; choose",
    f"{DATA} --out table.xls": "--out table.xls: write to a .parquet or .csv file",
    "memfold report none": "none",
    "memfold report folder": "audit.json",
    "memfold report data.npy": "data.npy",
    "memfold report deep-report": "audit.json",
    "memfold report nan-report": "audit.json",
    "memfold report ''": "--out '' is empty",
    "memfold verify none": "none",
    "memfold verify folder": "folder",
    "memfold verify data.npy": "data.npy",
    # Known answers.
    f"{AUDIT} --truth none.json": "--truth none.json cannot be read",
    f"{AUDIT} --truth list.json": 'is not of the form {"duplicated"',
    f"{AUDIT} --truth deep.json": "is not of the form",
    f"{AUDIT} --truth cut.json": "is not of the form",
    f"{AUDIT} --truth part-row.json": "row 1.7 is no whole number",
    f"{AUDIT} --truth true-row.json": "row True is no whole number",
    f"{AUDIT} --truth text-row.json": "row '7' is no whole number",
    f"{AUDIT} --truth infinite.json": "row inf is no whole number",
    f"{AUDIT} --truth far.json": "names row 999",
    f"{AUDIT} --truth negative.json": "names row -1",
    f"{AUDIT} --truth latin.json": "is not of the form",
    f"{AUDIT} --holdout data.npy": "held-out images must be unseen",
    f"{AUDIT} --embedding none.pt": "none.pt: no such file",
    # Prompts.
    "memfold audit painter --prompts none.txt --out out": "none.txt cannot be read",
    "memfold audit painter --prompts folder --out out": "folder is a directory",
    "memfold audit painter --prompts empty.txt --out out": "empty.txt holds no prompts",
    "memfold audit painter --prompts words.doc --out out": "the suffix '.doc' is unknown",
    "memfold audit painter --prompts few.txt --out out": "holds 2 different prompts, too few",
    f"{PROMPTS} --ordinary few.txt": "holds 2 different prompts that are not judged, too few",
    f"{PROMPTS} --ordinary prompts.txt": "holds 0 different prompts that are not judged, too few",
    "memfold audit painter --prompts latin.txt --out out": "is no UTF-8 text",
    "memfold audit painter --prompts zero.txt --out out": "holds zero bytes",
    "memfold audit painter --prompts zero.jsonl --out out": "holds a zero byte",
    "memfold audit painter --prompts half.jsonl --out out": "holds half a character",
    "memfold audit painter --prompts long.txt --out out": "characters; take 20000 or less",
    "memfold audit painter --prompts long.csv --out out": "field larger than field limit",
    "memfold audit painter --prompts deep.json --out out": "deep.json is no JSON",
    "memfold audit painter --prompts nan.jsonl --out out": "the prompt is missing",
    "memfold audit painter --prompts number.jsonl --out out": "the prompt is '7', a int and no",
    "memfold audit painter --prompts ragged.csv --out out": "line 3 has 3 fields",
    "memfold audit painter --prompts nocolumn.csv --out out": "no column of prompts",
    "memfold audit painter --prompts headers.csv --out out": "two columns named 'prompt'",
    "memfold audit painter --prompts cut.parquet --out out": "is no Parquet file",
    f"{PROMPTS} --images 0": "--images = 0; take 1 or more",
    f"{PROMPTS} --steps 1": "--steps = 1; take 2 or more",
    f"{PROMPTS} --workers 0": "--workers = 0; take 1 or more",
    f"{PROMPTS} --shown -1": "--shown = -1; take 0 or more",
    f"{PROMPTS} --limit -1": "--limit = -1; take 1 or more",
    f"{PROMPTS} --seed 1180591620717411303424": "--seed = 1180591620717411303424; take",
    f"{PROMPTS} --guidance-scale nan": "--guidance-scale = nan; choose",
    f"{PROMPTS} --guidance-scale inf": "--guidance-scale = inf; choose",
    f"{PROMPTS} --mitigate pray": "'pray' is unknown; choose from none, reword",
    f"{PROMPTS} --fail-on data": "'data' is unknown for prompts; choose memorized",
    f"{PROMPTS} --device cuda": "--device cuda cannot be used",
    # bench.
    f"{BENCH} --detectors magic": "'magic' is unknown; choose from",
    f"{BENCH} --limit -1": "--limit = -1; take 1 or more",
    f"{BENCH} --workers 0": "--workers = 0; take 1 or more",
    f"{BENCH} --images 0": "--images = 0; take 1 or more",
    f"{BENCH} --attacked 2": "--attacked: only for --mitigation",
    f"{BENCH} --methods reword": "--methods: only for --mitigation",
    f"{BENCH} --copy-limit 0.1": "--copy-limit: only for --mitigation",
    f"{BENCH} --embedding e.pt": "--embedding: of which training images",
    f"{BENCH} --mitigation --detectors cfg_norm": "--detectors: not with --mitigation",
    f"{BENCH} --mitigation --methods pray": "'pray' is unknown; choose from",
    f"{BENCH} --mitigation --methods rewrite:n=2": "'n=2' is no option of rewrite",
    f"{BENCH} --mitigation --images 1": "--images 1",
    f"{BENCH} --mitigation --attacked -1": "--attacked = -1; take 0 or more",
    f"{BENCH} --mitigation --copy-limit nan": "--copy-limit = nan; choose",
    "memfold bench painter --out out": "pass either --prompts FILE, or both",
    "memfold bench painter --memorized prompts.txt --out out": "--other FILE",
    f"{BENCH} --memorized prompts.txt": "pass either --prompts FILE",
    "memfold bench painter --prompts prompts.txt --out out": "0 are memorized",
    "memfold bench painter --memorized prompts.txt --other prompts.txt --out out": "in both lists",
    "memfold bench painter --prompts labelled.csv --out ''": "--out '' is empty",
    "memfold bench painter --prompts labelled.csv --out data.npy/x": "data.npy is a file",
    # explain, calibrate, mitigate.
    "memfold explain painter --prompt ''": "'': the prompt has no words; write some",
    "memfold explain painter --prompt '   '": "no words; write some",
    f"{EXPLAIN} --score magic": "'magic' is unknown; choose from",
    f"{EXPLAIN} --wrt pixels": "'pixels' is unknown; choose from tokens, prompt",
    f"{EXPLAIN} --guided --score cfg_norm": "--guided means nothing for cfg_norm",
    f"{EXPLAIN} --images 0": "--images = 0; take 1 or more",
    f"{EXPLAIN} --steps 0": "--steps = 0; take 2 or more",
    f"{EXPLAIN} --guidance-scale nan": "--guidance-scale = nan; choose",
    f"{EXPLAIN} --seed -1": "--seed = -1; take 0 or more",
    f"{EXPLAIN} --out data.npy": "data.npy is a file; choose",
    f"{EXPLAIN} --out ''": "--out '' is empty",
    "memfold explain model --prompt words": "takes no prompt",
    "memfold explain none --prompt words": "none: no such directory",
    f"{CALIBRATE} --alpha 0": "alpha = 0.0; choose a rate",
    f"{CALIBRATE} --alpha nan": "alpha = nan; choose a rate",
    f"{CALIBRATE} --alpha 0.01": "12 different prompts, too few for --alpha 0.01; give 99",
    f"{CALIBRATE} --alpha 0.2 --score magic": "'magic' is unknown; choose from cfg_norm",
    f"{CALIBRATE} --alpha 0.2 --images 0": "--images = 0; take 1 or more",
    f"{CALIBRATE} --alpha 0.2 --device cuda": "--device cuda cannot be used",
    f"{CALIBRATE} --alpha 0.2 --guidance-scale 1 --steps 2 --quiet": "give it a guidance_scale",
    "memfold calibrate painter --prompts none.txt --out band.json": "none.txt cannot be read",
    "memfold calibrate painter --prompts prompts.txt --alpha 0.2 --out folder": "is a directory",
    "memfold calibrate painter --prompts prompts.txt --alpha 0.2 --out ''": "--out '' is empty",
    "memfold calibrate painter --prompts prompts.txt --alpha 0.2 --out no/b.json": "no directory",
    "memfold calibrate model --prompts prompts.txt --alpha 0.2 --out b.json": "takes no prompt",
    f"{MITIGATE} --method pray": "'pray' is unknown; choose from reword",
    f"{MITIGATE} --method away": "needs the training images; pass --data",
    f"{MITIGATE} --data data.npy": "--data is for --method away; leave it out",
    f"{MITIGATE} --band none.json": "none.json",
    f"{MITIGATE} --band deep.json": "is no band; write it",
    f"{MITIGATE} --band list.json": "is no band; write it",
    "memfold mitigate painter --prompt '' --out out": "'': the prompt has no words; write some",
    "memfold mitigate painter --prompt words --out data.npy": "data.npy is a file; choose",
    "memfold mitigate none --prompt words --out out": "none: no such directory",
    # reproduce.
    "memfold reproduce nothing --out out --checkout CHECKOUT": "no experiment 'nothing'",
    "memfold reproduce circle --out out --checkout none": "clone memfold's repository",
    "memfold reproduce circle --out out --workers 0": "--workers = 0; take 1 or more",
    "memfold reproduce circle --out out --seed -1": "--seed = -1; take 0 or more",
    "memfold reproduce circle --out ''": "--out '' is empty",
    "memfold reproduce circle --out data.npy": "data.npy is a file; choose",
}  # fmt: skip

# Python, with np, torch, memfold; x: two points; images: two images; D: a denoiser; generator;
# pipe: a bare pipeline of diffusers; and what the docs import.
PYTHON = {
    "memfold.dsm_lid(D, np.zeros((2, 4), np.float32), 0.1)": "x is a numpy.ndarray; pass a tensor",
    "memfold.flipd(D, np.zeros((2, 4), np.float32), 0.1)": "x is a numpy.ndarray; pass a tensor",
    "memfold.spectral_lid(D, [[0.0, 1.0]], 0.1)": "x is a list; pass a tensor",
    "memfold.jacobian_rank(D, None, 0.1)": "x is a NoneType; pass a tensor",
    "memfold.normal_bundle(D, np.zeros((2, 4)), 0.1)": "x is a numpy.ndarray; pass a tensor",
    "memfold.lid_curve(D, np.zeros((2, 4), np.float32))": "x is a numpy.ndarray; pass a tensor",
    "D(np.zeros((2, 4), np.float32), 0.1)": "x is a numpy.ndarray; pass a tensor",
    "memfold.dsm_lid(D, x.long(), 0.1)": "torch.int64; pass floating-point",
    "memfold.dsm_lid(D, x.half(), 0.1)": "torch.float16, which rounds",
    "memfold.dsm_lid(D, x[0], 0.1)": "pass a batch of points",
    "memfold.dsm_lid(D, x[:0], 0.1)": "pass a batch of points",
    "memfold.dsm_lid(D, x * float('nan'), 0.1)": "x[0] holds NaN",
    "memfold.dsm_lid(D, x, '0.1')": "sigma must be one number",
    "memfold.dsm_lid(D, x, -1)": "sigma = -1",
    "memfold.dsm_lid(D, x, float('nan'))": "sigma = nan",
    "memfold.dsm_lid(D, x, 0.1, n_noises=1)": "n_noises = 1 gives no standard error",
    "memfold.dsm_lid(D, x, 0.1, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.flipd(D, x, 0.1, generator=7)": "pass torch.Generator().manual_seed(7)",
    "memfold.spectral_lid(D, x, 0.1, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.jacobian_rank(D, x, 0.1, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.normal_bundle(D, x, 0.1, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.lid_curve(D, x, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.transition_mass(D, x, 0.1, generator=0)": "pass torch.Generator().manual_seed(0)",
    "memfold.sampler_lid(lambda n, generator: x, x, memfold.MLE(), generator=0)": "Generator()",
    "memfold.decoder_lpca(lambda z: z, x, 0.1, generator=0)": "Generator().manual_seed(0)",
    "memfold.decoder_slope(lambda z: z, x, 0.1, generator=0)": "Generator().manual_seed(0)",
    "memfold.find_latents(lambda z: z, x, generator=0)": "Generator().manual_seed(0)",
    "sphere(2, 5, 10, generator=0)": "Generator().manual_seed(0)",
    "torus(10, generator=0)": "Generator().manual_seed(0)",
    "subspaces((2,), 5, 10, generator=0)": "Generator().manual_seed(0)",
    "memorized(generator=0)": "Generator().manual_seed(0)",
    "memfold.mitigate(None, 'words', generator=0)": "Generator().manual_seed(0)",
    "memfold.dsm_lid(pipe, x, 0.1)": "DDPMPipeline is a diffusers pipeline, no denoiser; pass",
    "memfold.flipd(pipe, x, 0.1)": "DDPMPipeline is a diffusers pipeline, no denoiser; pass",
    "memfold.lid_curve(pipe, x)": "DDPMPipeline is a diffusers pipeline, no denoiser; pass",
    "generate(pipe, [0])": "DDPMPipeline is a diffusers pipeline, no denoiser; pass",
    "memfold.dsm_lid(pipe.unet, x, 0.1)": "UNet2DModel is a network in coordinates of its own",
    "memfold.dsm_lid(pipe.scheduler, x, 0.1)": "DDPMScheduler is a scheduler, no denoiser",
    "memfold.dsm_lid(5, x, 0.1)": "int is no denoiser; pass",
    "memfold.dsm_lid(memfold.MLE, x, 0.1)": "is no denoiser; pass",
    "memfold.dsm_lid(lambda x, sigma: None, x, 0.1)": "the callable returned NoneType",
    "memfold.dsm_lid(lambda x, sigma: x[:, :1], x, 0.1)": "the callable returned (",
    "memfold.attribute(pipe, 'words')": "DDPMPipeline is no TextToImage; pass",
    "memfold.TextToImage(pipe)": "DDPMPipeline",
    "memfold.TextToImage(5)": "int",
    "memfold.calibrate(pipe, ['words'])": "DDPMPipeline",
    "memfold.Monitor(5)": "int",
    "memfold.load(5)": "int",
    "memfold.load('none')": "none: no such directory",
    "memfold.load('model', device='foo')": "--device foo cannot be used",
    "memfold.load('model', device='cuda')": "--device cuda cannot be used",
    "D.encode(images * 255)": "images hold values from 0 to 255; encode takes [0, 1]: divide",
    "D.encode(images * 2 - 1)": "images hold values from -1 to 1; encode takes [0, 1]",
    "D.encode((images * 255).byte())": "images have dtype torch.uint8; pass floats",
    "D.encode(images * float('nan'))": "images hold values from nan",
    "D.encode(images.numpy())": "images is a numpy.ndarray; pass a tensor",
    "D.encode(images[:0])": "there are none; pass some",
    "load_images(5)": "cannot be loaded from a int; pass",
    "load_images([])": "holds no images",
    "load_images(np.zeros((3, 3, 3)))": "which can be read as",
    "load_images(np.full((4, 8, 8), 7.0))": "holds floats from 7 to 7; scale",
    "memfold.load_embedding('none')": "none: no such file or directory",
    "memfold.load_embedding('data.npy')": "is no TorchScript module",
    "Plan(model='m', data='d', out='o', train_points=True, noises=1e12)": "whole number",
    "Plan(model='m', data='d', out='o', train_points=True, seed=True)": "whole number",
    "Plan(model='m', data='d', out='o', train_points=True, seed='0')": "whole number",
    "Plan(model='m', data='d', out='', train_points=True)": "--out '' is empty",
    "Plan(model='m', data='d', out='a\\0b', train_points=True)": "holds a zero byte",
    "Scoring(model='m', seed=2**70)": "--seed = 1180591620717411303424; take",
    "Scoring(model='m', guidance_scale=float('nan'))": "--guidance-scale = nan",
    "Scoring(model='m', images=2.0)": "--images = 2.0; take a whole number",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a call gave: exit code (2 for an InputError), what it printed, what it left behind."""

    code: int
    out: str
    err: str
    left: list[str]


def world(root: Path) -> Path:
    """Write the files that the calls name."""
    _models(root)
    _images(root)
    _texts(root)
    (root / "nowhere").symlink_to("gone")
    (root / "loop").symlink_to("loop")
    return root


def _models(root: Path) -> None:
    import shutil

    (root / "model").symlink_to(ROOT / "assets/demo/model")
    (root / "painter").symlink_to(ROOT / "assets/text_to_image/model")
    index = (ROOT / "assets/demo/model/model_index.json").read_text()
    config = json.loads((ROOT / "assets/demo/model/unet/config.json").read_text())
    for name in ("cut-model", "huge-model", "nan-model", "pickled"):
        shutil.copytree(ROOT / "assets/demo/model", root / name)
        (root / name).chmod(0o755)
    weights = {name: next((root / name / "unet").glob("*.safetensors")) for name in
               ("cut-model", "pickled")}  # fmt: skip
    weights["cut-model"].write_bytes(weights["cut-model"].read_bytes()[:1000])
    weights["pickled"].rename(root / "pickled/unet/diffusion_pytorch_model.bin")
    (root / "huge-model/unet/config.json").write_text(json.dumps(config | {"sample_size": 10**6}))
    text = json.dumps(config | {"norm_eps": float("nan"), "sample_size": float("inf")})
    (root / "nan-model/unet/config.json").write_text(text)
    for name, text in (("deep-model", "[" * 10**5), ("list-model", "[]")):
        (root / name).mkdir()
        (root / name / "model_index.json").write_text(text)
    assert "_class_name" in index


def _images(root: Path) -> None:
    arrays = {
        "data": np.random.default_rng(0).integers(256, size=(30, 16, 16), dtype=np.uint8),
        "nan": np.full((30, 8, 8), np.nan), "floats": GREY.astype(float), "ints": GREY.astype(int),
        "flat": np.zeros(64), "noimages": np.zeros((0, 8, 8), np.uint8), "few": GREY[:5].repeat(
            2, 1).repeat(2, 2), "wide": np.zeros((30, 9, 9), np.uint8),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    np.save(root / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(root / "other.npz", pictures=GREY)
    np.savez(root / "cut.npz", images=GREY)
    (root / "cut.npz").write_bytes((root / "cut.npz").read_bytes()[:500])
    for name in ("zero.npy", "cut.parquet", "text.xyz"):
        (root / name).write_bytes(b"")
    for name in ("empty", "folder", "folder.csv", "corrupt", "zero-bytes", "bomb", "sizes", "one",
                 "deep16", "moving", "bytes", "looped"):  # fmt: skip
        (root / name).mkdir()
        if name not in ("empty", "folder", "folder.csv", "bomb", "one", "moving"):
            Image.fromarray(GREY[0]).save(root / name / "0.png")
    (root / "corrupt/b.png").write_bytes(b"no png")
    (root / "zero-bytes/b.png").write_bytes(b"")
    (root / "looped/a.png").symlink_to("a.png")
    Image.new("1", (20000, 20000)).save(root / "bomb/bomb.png")
    Image.new("L", (9, 9)).save(root / "sizes/b.png")
    Image.new("L", (1, 1)).save(root / "one/b.png")
    Image.fromarray(GREY[0].astype(np.uint16)).save(root / "deep16/b.png")
    frames = [Image.fromarray(g) for g in GREY[:2]]
    frames[0].save(root / "moving/b.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(GREY[0]).save(os.fsencode(root / "bytes") + b"/\xff.png", format="PNG")


def _texts(root: Path) -> None:
    deep = "[" * 10**5 + "]" * 10**5
    rows = [f"a picture of number {i}" for i in range(12)]
    truth = '{"duplicated": [], "rare": [%s]}'
    texts = {
        "prompts.txt": "\n".join(rows), "few.txt": "one\ntwo", "empty.txt": "", "words.doc": "a",
        "labelled.csv": "prompt,type\n" + "".join(
            f"{r},{'memorized' if i % 2 else 'none'}\n" for i, r in enumerate(rows)),
        "latin.txt": b"caf\xe9\n", "zero.txt": "a\0b\n", "long.txt": "x" * 10**6,
        "zero.jsonl": '"a\\u0000b"',
        "half.jsonl": '"\\ud800"', "long.csv": f"prompt\n{'x' * 10**6}",
        "deep.json": deep, "nan.jsonl": '{"prompt": NaN}', "number.jsonl": '{"prompt": 7}',
        "ragged.csv": "prompt,type\na,none\na,none,x\n", "nocolumn.csv": "size,type\na,none\n",
        "headers.csv": "prompt,prompt\na,b\n", "list.json": "[]", "cut.json": '{"duplicated": [',
        "part-row.json": truth % 1.7, "true-row.json": truth % "true", "far.json": truth % 999,
        "text-row.json": truth % '"7"', "infinite.json": truth % "Infinity",
        "negative.json": truth % -1, "latin.json": b'{"rare": ["\xe9"]}', "truth.json": truth % 1,
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, text in (("deep-report", deep), ("nan-report", '{"n": NaN')):
        (root / name).mkdir()
        (root / name / "audit.json").write_text(text)


def tree(root: Path) -> dict[str, tuple]:
    """List what stands in a folder."""
    found = {}
    for path in root.rglob("*"):
        state = path.lstat()
        found[os.fsencode(path.relative_to(root))] = (
            state.st_size,
            state.st_mtime_ns,
            state.st_ino,
        )
    return found


def run_command(call: str, root: Path) -> Result:
    """Run a call of the command line in this process, in the folder."""
    from memfold import cli

    argv = shlex.split(call.replace("CHECKOUT", str(ROOT)).replace(r"$'\xff'", "\udcff"))
    before, here, out, err = tree(root), Path.cwd(), io.StringIO(), io.StringIO()
    old = sys.argv
    os.chdir(root)
    try:
        sys.argv = argv
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = None
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = old
        os.chdir(here)
    return Result(code, out.getvalue(), err.getvalue(), _left(before, tree(root)))


def _left(before: dict, after: dict) -> list[str]:
    return sorted(
        os.fsdecode(name)
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    )


def run_python(root: Path) -> dict[str, Result]:
    """Run the calls of Python in a process of its own: pytest checks types, and would mask them."""
    found = subprocess.run(
        [sys.executable, "-c", "from tests.cli.bad_inputs import main_python; main_python()"],
        cwd=root, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    )  # fmt: skip
    if found.returncode:
        raise RuntimeError(found.stderr)
    return {call: Result(**result) for call, result in json.loads(found.stdout).items()}


def main_python() -> None:
    """Run the calls of Python in the current folder; print the results as JSON."""
    import diffusers
    import torch

    import memfold
    from memfold.audit.plan import Plan
    from memfold.audit.scoring import Scoring
    from memfold.datasets.images import load_images
    from memfold.datasets.manifolds import sphere, subspaces, torus
    from memfold.datasets.memorized import memorized
    from memfold.sampling.generate import generate
    from memfold.types import InputError

    class Identity(memfold.Denoiser):
        def denoise(self, x, sigma, cond):
            return x / (1 + sigma**2)

    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4,), norm_num_groups=2,
        layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    names = {
        "np": np, "torch": torch, "memfold": memfold, "Plan": Plan, "Scoring": Scoring,
        "load_images": load_images, "generate": generate, "D": Identity(), "sphere": sphere,
        "subspaces": subspaces, "torus": torus, "memorized": memorized,
        "x": torch.zeros(2, 4), "images": torch.linspace(0, 1, 128).reshape(2, 1, 8, 8),
        "pipe": diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()),
    }  # fmt: skip
    results = {}
    for call in PYTHON:
        before = tree(Path.cwd())
        try:
            eval(call, dict(names))
            code, err = 0, ""
        except InputError as error:
            code, err = 2, f"{error}\n"
        except Exception as error:
            code, err = 70, f"{type(error).__name__}: {error}\n"
        results[call] = vars(Result(code, "", err, _left(before, tree(Path.cwd()))))
    print(json.dumps(results))


def fault(result: Result, words: str) -> str:
    """Say what is wrong with a result; nothing if it is as it should be."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    if result.code != 2:
        return f"code {result.code}: {result.err[-300:]}"
    if len(lines) != 1 or "Traceback" in result.err or (result.out and "Usage" not in result.out):
        return f"{len(lines)} lines: {result.err[-600:]} {result.out[-200:]}"
    if words not in lines[0]:
        return f"without {words!r}: {lines[0]}"
    return f"left behind: {result.left}" if result.left else ""


def main() -> None:
    """Write docs/errors.md."""
    with tempfile.TemporaryDirectory() as folder:
        root = world(Path(folder))
        results = {call: run_command(call, root) for call in COMMANDS} | run_python(root)
        wrong = {c: fault(results[c], w) for c, w in (COMMANDS | PYTHON).items()}
        for call, reason in wrong.items():
            if reason:
                print(f"{call}\n    {reason}", file=sys.stderr)
        (ROOT / "docs/errors.md").write_text(_page(results, root), encoding="utf-8")
    sys.exit(any(wrong.values()))


def _page(results: dict[str, Result], root: Path) -> str:
    shown = "\n".join(
        f"| `{_cell(call, root)}` | {_cell(results[call].err, root, words=True)} |"
        for call in COMMANDS | PYTHON
    )
    return f"""# Bad inputs

What cannot be used is refused before any work: one line that names the value and the remedy, exit
code 2, nothing left behind. In Python the same line is an `InputError`. Each row of this table is a
test; `python -m tests.cli.bad_inputs` ran the calls and wrote it ({len(COMMANDS)} of the command
line, {len(PYTHON)} of Python). Files are named by what is wrong with them: `cut.npz` is cut in
half, `nan.npy` holds NaN, `deep.json` is nested {10**5:,} times, `bomb` holds an image of 20,000 x
20,000; `model` and `painter` are the bundled models.

| call | message |
|---|---|
{shown}
"""


def _cell(text: str, root: Path, words: bool = False) -> str:
    text = (
        " ".join(text.removeprefix("memfold: " if words else "").split())
        .replace(str(root), ".")
        .replace(str(ROOT), ".")
    )
    if words:
        for mark in "\\`*_[]<>{}":
            text = text.replace(mark, f"\\{mark}")
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
