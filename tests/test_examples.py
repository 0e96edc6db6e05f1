"""The service of the examples draws what is ordinary and refuses what is known by heart."""

from __future__ import annotations

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

import memfold

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "assets" / "text_to_image"
OPTIONS = {"num_inference_steps": 8, "guidance_scale": 3.0}
KNOWN = "a photo of the sorzesha tshirt"


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("service", ROOT / "examples" / "service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def guard():
    pipe = DiffusionPipeline.from_pretrained(ASSETS / "model")
    pipe.set_progress_bar_config(disable=True)
    prompts = (ASSETS / "ordinary.txt").read_text("utf-8").splitlines()
    band = memfold.calibrate(pipe, prompts[:19], alpha=0.05, **OPTIONS)
    return memfold.Guard(pipe, band, on_memorized="refuse")


@pytest.fixture
def ask(service, guard):
    """Post a body to a running service; status and content."""
    server = service.serve(guard, 0, OPTIONS)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def post(body: bytes) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    yield post
    server.shutdown()
    server.server_close()


def test_an_ordinary_prompt_is_drawn_by_the_seed_that_was_asked_for(ask, capsys):
    """The same seed gives the same bytes, another seed others; the log says that it passed."""
    bodies = [
        json.dumps({"prompt": "a photo of a plain coat", "seed": s}).encode() for s in (1, 1, 2)
    ]
    answers = [ask(body) for body in bodies]
    assert [status for status, _ in answers] == [200] * 3
    assert all(content.startswith(b"\x89PNG") for _, content in answers)
    assert answers[0] == answers[1] != answers[2]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == ["passed"] * 3


def test_a_memorized_prompt_is_refused_without_a_number_for_the_caller(ask, capsys):
    """The score and the limit stand in the log, not in the answer."""
    status, content = ask(json.dumps({"prompt": KNOWN}).encode())
    assert status == 403
    assert json.loads(content) == {"error": "this prompt cannot be drawn"}
    line = json.loads(capsys.readouterr().out)
    assert line["outcome"] == "refused"
    assert line["score"] > line["limit"] > 0


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b'{"prompt": 7}', b'{"prompt": "x", "seed": "y"}', b"[" * 9000,
     b'{"prompt": "x", "seed": 1e999}', b'{"prompt": "' + b"x" * 20_000 + b'"}'],
)  # fmt: skip
def test_what_is_no_request_is_told_so(ask, body):
    """Whatever is sent, the answer is one line with status 400, and the service lives on."""
    assert ask(body)[0] == 400
