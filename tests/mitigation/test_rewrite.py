"""Rewriting: which words go, what comes in their place, and what an endpoint may do wrong."""

from __future__ import annotations

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.mitigation import mitigate
from memfold.mitigation.endpoint import ask
from memfold.mitigation.vocabulary import vocabulary
from memfold.types import InputError
from tests.text_to_image import tiny, tiny_others
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET


@functools.cache
def adapted(family="sd1 (eps)"):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


def gone(method, seed=0, **options):
    """The words that a rewriting took away."""
    g = torch.Generator().manual_seed(seed)
    new = mitigate(adapted(), PROMPT, method=method, generator=g, **options).prompt.split()
    pairs = zip(PROMPT.split(), new, strict=True)
    return [a for a, b in pairs if a != b]


def test_words_are_drawn_by_softmax_of_their_weights():
    """Weights 1 and 1 - T ln 3 are drawn as 3 to 1; the others hardly ever."""
    weights = {"anna": 1.0, "house": 1.0 - 0.1 * 1.0986123}
    drawn = [gone("rewrite", k, weights=weights)[0] for k in range(200)]
    assert set(drawn) == {"anna", "house"}
    share = drawn.count("anna") / 200
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 200) ** 0.5


def test_a_repeated_word_has_a_weight_of_its_own_in_each_place():
    """A mapping gives both the same; pairs in the order of the prompt tell them apart."""
    text = "anna by anna"
    places = set()
    for k in range(20):
        new = mitigate(
            adapted(), text, method="rewrite", weights=[("anna", 0.0), ("by", 0.0), ("anna", 1.0)],
            generator=torch.Generator().manual_seed(k), temperature=0.01,
        ).prompt.split()  # fmt: skip
        places |= {i for i, word in enumerate(new) if word != text.split()[i]}
    assert places == {2}


def test_the_control_draws_evenly():
    drawn = [gone("random_rewrite", k)[0] for k in range(240)]
    words = PROMPT.split()
    counts = [drawn.count(w) for w in words]
    expected = 240 / len(words)
    assert sum((c - expected) ** 2 / expected for c in counts) < 26  # chi2, 7 degrees, p = 5e-4


def test_several_words_are_replaced_and_never_by_themselves():
    assert len(gone("rewrite", weights={"anna": 1.0, "old": 1.0, "by": 1.0}, n_words=3)) == 3


def test_the_replacement_keeps_the_pooled_embedding_closest_of_the_neighbours():
    model, known = adapted(), vocabulary(adapted())
    new = mitigate(model, PROMPT, method="rewrite", weights={"anna": 1.0}).prompt
    place = PROMPT.split().index("anna")
    near = known.near("anna", 16)
    texts = [PROMPT.replace("anna", other) for other in near]
    cosines = known.pooled(texts) @ known.pooled([PROMPT])[0]
    assert new.split()[place] == near[int(cosines.argmax())]
    assert "anna" not in near


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "sd3", "pixart", "sana"])
def test_neighbours_are_those_of_the_table(family):
    known = vocabulary(adapted(family))
    order = (known.rows @ known.rows[known.words.index("red")]).argsort(descending=True)
    assert known.near("red", 5) == [known.words[i] for i in order[1:6].tolist()]
    assert known.rows.norm(dim=1).allclose(torch.ones(len(known.words)))


@pytest.mark.parametrize("family", ["qwen-image", "cogview4", "flux2"])
def test_encoders_without_a_pooled_output_give_the_mean_of_their_last_layer(family):
    known = vocabulary(TextToImage(tiny.pipeline(family), **tiny_others.tiny.OPTIONS[family]))
    one, two = known.pooled(["red dog", "red dog by the house"])
    ids = known.tokenizer(["red dog"], return_tensors="pt")
    asked = {k: ids[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        last = known.encoder(**asked, output_hidden_states=True).hidden_states[-1]
    wanted = torch.nn.functional.normalize(last[0].float().mean(0), dim=0)
    torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-4)
    assert float(one @ two) < 1 - 1e-6


class Fake(ThreadingHTTPServer):
    """An endpoint that answers as it is told, and keeps what it was asked."""

    def __init__(self, status=200, content=None, headers=()):
        self.seen = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append((self.path, self.headers.get("Authorization"), body))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def said(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def test_the_endpoint_is_asked_once_with_the_drawn_words(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Fake(content=said(' "a photo of maria\nby the old house" ')) as fake:
        found = mitigate(
            adapted(), PROMPT, method="rewrite", weights={"anna": 1.0}, url=fake.url + "/",
            llm="m", key_env="MY_KEY",
        )  # fmt: skip
    assert found.prompt == "a photo of maria by the old house"
    [(path, key, body)] = fake.seen
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    assert json.loads(body["messages"][1]["content"]) == {"prompt": PROMPT, "words": ["anna"]}


def test_no_key_is_sent_where_there_is_none(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with Fake(content=said("a cat")) as fake:
        assert ask(fake.url, "m", "NO_KEY", "a dog", ["dog"]) == "a cat"
    assert fake.seen[0][1] is None


@pytest.mark.parametrize(
    ("status", "content", "match"),
    [
        (401, b"", "answered 401; is MY_KEY set"),
        (500, b"secret", "answered 500$"),
        (200, b"<html>", "no chat completion"),
        (200, b'{"choices": []}', "no chat completion"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "no chat completion"),
        (200, said("  "), "an empty prompt"),
        (200, said("a dog"), "an unchanged prompt"),
        (200, said("x" * 3000), "3000 characters"),
    ],
)
def test_what_an_endpoint_does_wrong_ends_in_a_line_without_the_key(
    status, content, match, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "secret")
    with Fake(status, content) as fake, pytest.raises(InputError, match=match) as caught:
        ask(fake.url, "m", "MY_KEY", "a dog", ["dog"])
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_redirect_does_not_carry_the_key_elsewhere(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Fake(content=said("a cat")) as other:
        headers = [("Location", other.url + "/chat/completions")]
        with (
            Fake(302, b"", headers) as fake,
            pytest.raises(InputError, match="answered 302"),
        ):
            ask(fake.url, "m", "MY_KEY", "a dog", ["dog"])
        assert not other.seen


def test_an_endpoint_that_is_not_there_and_addresses_that_are_none(monkeypatch):
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with Fake() as fake:
        url = fake.url
    with pytest.raises(InputError, match="cannot be asked"):
        ask(url, "m", "NO_KEY", "a dog", ["dog"], seconds=2.0)
    with pytest.raises(InputError, match="begins with http"):
        ask("file:///etc/passwd", "m", "NO_KEY", "a dog", ["dog"])
    with pytest.raises(InputError, match="pass llm="):
        ask(url, None, "NO_KEY", "a dog", ["dog"])
    with pytest.raises(InputError, match="a bad header"):
        ask(url, "m", "MY_KEY", "a dog", ["dog"])


def test_control_characters_of_an_answer_are_dropped():
    with Fake(content=said("a \x1b[31mred\u202e cat")) as fake:
        assert ask(fake.url, "m", "NO_KEY", "a dog", ["dog"]) == "a [31mred cat"
