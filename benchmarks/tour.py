"""Everything that memfold does for text-to-image pipelines, on the bundled one, with its seconds.

    OMP_NUM_THREADS=1 python benchmarks/tour.py --out out/tour

One command after the other, as a user would type them, and the same in Python. --limit takes fewer
prompts of each kind in the benchmark of all detectors. The output is Markdown; each command's own
output is in OUT/*.log. A command that fails ends the tour with its exit code.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

T2I = "assets/text_to_image"
RUN = "--steps 20 --guidance-scale 3"
PYTHON = """
import memfold
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("assets/text_to_image/model")
prompt = open("assets/text_to_image/suspects.txt", encoding="utf-8").readline().strip()
run = {"num_inference_steps": 20, "guidance_scale": 3.0}
with memfold.Monitor(pipe) as monitor:
    pipe(prompt, **run)
print({name: scores.mean().item() for name, scores in monitor.scores.items()})
words = memfold.attribute(memfold.TextToImage(pipe), prompt, **run)
print(dict(zip(words.words, words.weights.tolist())))
print(memfold.mitigate(pipe, prompt, **run).description)
guarded = memfold.Guard(pipe, "OUT/band.json")
guarded(prompt, **run).images[0].save("OUT/guarded.png")
print(guarded.last)
"""


def commands(limit, workers):
    """Return (title, command) of every stop."""
    many = f"--workers {workers}"
    some = "" if limit is None else f"--limit {limit}"
    first = Path(T2I, "suspects.txt").read_text(encoding="utf-8").splitlines()[0]
    prompt = f"--prompt {shlex.quote(first)} {RUN}"
    train = f"--data {T2I}/train.npz"
    memfold = f"{shlex.quote(sys.executable)} -m memfold"
    model = f"{T2I}/model"
    return [
        (
            "`memfold bench`, every detector",
            f"{memfold} bench {model} --prompts {T2I}/prompts.csv {train} --embedding {T2I}/clip "
            f"{RUN} {many} {some} --out OUT/bench",
        ),
        ("`memfold explain`", f"{memfold} explain {model} {prompt} --out OUT/why"),
        (
            "`memfold calibrate`",
            f"{memfold} calibrate {model} --prompts {T2I}/ordinary.txt {RUN} --out OUT/band.json",
        ),
        (
            "`memfold mitigate`",
            f"{memfold} mitigate {model} {prompt} --band OUT/band.json --out OUT/mitigated",
        ),
        (
            "`memfold bench --mitigation`, every method",
            f"{memfold} bench {model} --mitigation --prompts {T2I}/prompts.csv {train} "
            f"--clip {T2I}/clip {RUN} {many} --limit 2 --attacked 1 --out OUT/mitigation",
        ),
        (
            "`memfold audit --prompts`",
            f"{memfold} audit {model} --prompts {T2I}/suspects.txt --ordinary {T2I}/ordinary.txt "
            f"{train} {RUN} {many} --mitigate reword --shown 4 --out OUT/audit",
        ),
        (
            "Monitor, attribute, mitigate, Guard in Python",
            f"{shlex.quote(sys.executable)} -c {shlex.quote(PYTHON)}",
        ),
    ]


def main():
    """Run all stops and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/tour"), help="a new directory")
    parser.add_argument("--limit", type=int, help="prompts of each kind for the detectors")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty; what is done already would not be timed")
    args.out.mkdir(parents=True, exist_ok=True)
    print("| what | seconds |\n|---|---|", flush=True)
    begin = time.monotonic()
    for number, (title, command) in enumerate(commands(args.limit, args.workers)):
        log, start = args.out / f"{number}.log", time.monotonic()
        with log.open("wb") as file:
            done = subprocess.run(
                shlex.split(command.replace("OUT", str(args.out))), stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
            )  # fmt: skip
        if done.returncode:
            sys.exit(f"{title} ended with {done.returncode}; see {log}")
        print(f"| {title} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"| all | {time.monotonic() - begin:.0f} |")


if __name__ == "__main__":
    main()
