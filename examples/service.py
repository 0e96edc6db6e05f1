r"""A small web service that does not hand out what its model knows by heart.

    memfold calibrate assets/text_to_image/model --prompts assets/text_to_image/ordinary.txt \
      --steps 20 --guidance-scale 3 --out out/band.json
    python examples/service.py assets/text_to_image/model out/band.json --guidance-scale 3

    curl -d '{"prompt": "a photo of a dark bag by petra from cork"}' localhost:8000 -o image.png

Plain standard library; in another framework the body of `answer` is the same. One generation at a
time: a guard watches one call, so put a lock around it, or give each worker a pipeline of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from diffusers import DiffusionPipeline

import memfold

LONGEST = 10_000  # bytes of a request
# What comes of a request that is none; memfold's InputError is a ValueError.
_BAD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def answer(guard: memfold.Guard, body: bytes, options: dict[str, Any]) -> tuple[int, str, bytes]:
    """Draw the prompt of a request; status, content type and content of the answer."""
    begun = time.perf_counter()
    fact: dict[str, Any] = {"outcome": "failed"}
    try:
        asked = json.loads(body)
        prompt, seed = asked["prompt"], int(asked.get("seed", 0)) % 2**32
        fact |= {"prompt": prompt, "seed": seed}
        generator = torch.Generator().manual_seed(seed)
        image = guard(prompt, generator=generator, **options).images[0]
        fact["outcome"] = guard.last  # "passed" or "mitigated"
        picture = io.BytesIO()
        image.save(picture, "PNG")
        return 200, "image/png", picture.getvalue()
    except memfold.Refused as refused:
        # Score and limit go to the log alone: told to the caller, they would guide an attack.
        fact |= {"outcome": "refused", "step": refused.step, "score": refused.score,
                 "limit": refused.bound}  # fmt: skip
        return 403, "application/json", b'{"error": "this prompt cannot be drawn"}'
    except _BAD as error:
        fact |= {"outcome": "bad request", "error": str(error)}
        return (
            400,
            "application/json",
            b'{"error": "send JSON with a prompt, and a seed if wanted"}',
        )
    finally:
        print(json.dumps(fact | {"seconds": round(time.perf_counter() - begun, 3)}), flush=True)


def serve(guard: memfold.Guard, port: int, options: dict[str, Any]) -> HTTPServer:
    """Make the server; `serve_forever` on it answers one request after the other."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            body = self.rfile.read(min(int(size), LONGEST)) if size.isdecimal() else b""
            status, kind, content = answer(guard, body, options)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Leave the log to `answer`."""

    return HTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Load pipeline and band, and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", help="a diffusers text-to-image directory or hub id")
    parser.add_argument("band", help="from memfold calibrate")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, default=7.5, help="as it was calibrated")
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    try:
        guard = memfold.Guard(pipe, args.band, on_memorized="mitigate")
    except memfold.InputError as error:
        sys.exit(str(error))
    serve(guard, args.port, options).serve_forever()


if __name__ == "__main__":
    main()
