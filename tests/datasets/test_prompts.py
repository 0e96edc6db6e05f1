"""Prompt lists as people keep them, and what is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memfold.datasets.families import _COMMON, _overlapping, prompt_families
from memfold.datasets.prompts import Prompts, read_prompts
from memfold.types import InputError

CAPTIONS = [
    "The Quiet Hour; a podcast, by Anna",
    'Vinyl 12" record, "live" in Kyōto 京都',
    "two\nlines",
    "plain",
]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def quoted(delimiter, rows):
    return "".join(
        delimiter.join('"' + str(v).replace('"', '""') + '"' for v in row) + "\n" for row in rows
    )


def refused(path, *words, **options):
    with pytest.raises(InputError) as caught:
        read_prompts(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
@pytest.mark.parametrize("name", ["list.csv", "LIST.TSV"])
@pytest.mark.parametrize("dress", [str.encode, "﻿{}".format, lambda t: t.replace("\n", "\r\n")])
def test_tables(tmp_path, delimiter, name, dress):
    rows = [["", "Caption", "URL", "type"]]
    rows += [[i, c, "http://x/?a=1;b,c", "VM" if i % 2 else "TM"] for i, c in enumerate(CAPTIONS)]
    text = dress(quoted(delimiter, rows))
    found = read_prompts(write(tmp_path, name, text))
    assert found.prompts == CAPTIONS
    assert found.kinds == ["template", "verbatim"] * 2
    assert found.columns == {"": ["0", "1", "2", "3"], "URL": ["http://x/?a=1;b,c"] * 4}


def test_table_without_quotes_as_published(tmp_path):
    text = (
        ";Caption;URL;type;mean_sscd;max_sscd;Index\n"
        "0;Wheel, 5 on 4-3/4 BP, 3 Inch BS;https://a.b/c_1,w_2.jpg;TM;0.19;0.20;2026\n"
        "1;Mother's young hippo | アヤワスカ;https://a.b/d.jpg;VM;0.83;0.84;1030\n"
    )
    found = read_prompts(write(tmp_path, "memorized.csv", text))
    assert found.prompts == ["Wheel, 5 on 4-3/4 BP, 3 Inch BS", "Mother's young hippo | アヤワスカ"]
    assert found.kinds == ["template", "verbatim"]
    assert found.columns["mean_sscd"] == ["0.19", "0.83"]


def test_one_column_with_every_separator_in_it(tmp_path):
    path = write(tmp_path, "one.csv", 'prompt\na dog; red\n\na cat, "blue"\nx\ty\n')
    assert read_prompts(path).prompts == ["a dog; red", 'a cat, "blue"', "x\ty"]


def test_utf16_as_spreadsheets_save_it(tmp_path):
    path = write(tmp_path, "wide.tsv", "prompt\tkind\nKyōto 京都\tverbatim\n".encode("utf-16"))
    found = read_prompts(path)
    assert (found.prompts, found.kinds) == (["Kyōto 京都"], ["verbatim"])


@pytest.mark.parametrize("key", ["caption", "prompt", "TEXT"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines(tmp_path, key, name):
    rows = [
        {key: c, "overfit_type": t} for c, t in zip(CAPTIONS, ["MV", "TV", None, "N"], strict=True)
    ]
    rows[2]["extra"] = 3
    text = "\n\n".join(json.dumps(r) for r in rows) + "\n"
    found = read_prompts(write(tmp_path, name, text))
    assert found.prompts == CAPTIONS
    assert found.kinds == ["verbatim", "template", None, "none"]
    assert found.columns == {"extra": [None, None, 3, None]}


@pytest.mark.parametrize("rows", [CAPTIONS, [{"caption": c} for c in CAPTIONS]])
def test_json_list(tmp_path, rows):
    path = write(tmp_path, "a.json", json.dumps(rows, indent=1))
    assert read_prompts(path).prompts == CAPTIONS


def test_json_strings_a_line(tmp_path):
    text = "\n".join(json.dumps(c) for c in CAPTIONS)
    assert read_prompts(write(tmp_path, "a.jsonl", text)).prompts == CAPTIONS


def test_plain_text(tmp_path):
    path = write(tmp_path, "a.txt", "﻿one; two, three\r\n\r\n  \n a {json} [x]\u2028y\rlast")
    assert read_prompts(path).prompts == ["one; two, three", " a {json} [x]\u2028y", "last"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "str")])
def test_parquet(tmp_path, kind):
    column = (
        pa.array(CAPTIONS).cast(kind) if kind != pa.large_string() else pa.array(CAPTIONS, kind)
    )
    pq.write_table(pa.table({"TEXT": column, "score": [0.5, 1, 2, 3]}), tmp_path / "a.parquet")
    found = read_prompts(tmp_path / "a.parquet")
    assert found.prompts == CAPTIONS
    assert found.columns == {"score": [0.5, 1.0, 2.0, 3.0]}


def test_order_of_names(tmp_path):
    path = write(tmp_path, "a.csv", "text,Caption,PROMPT\n1,2,3\n")
    assert read_prompts(path).prompts == ["3"]
    assert read_prompts(path, column="text").prompts == ["1"]


def test_duplicates_stay_and_are_one_family(tmp_path):
    found = read_prompts(write(tmp_path, "a.txt", "a red dog\na cat\na red dog\n"))
    assert found.prompts == ["a red dog", "a cat", "a red dog"]
    assert found.families[0] == found.families[2] != found.families[1]
    assert found.notes == ("1 of 3 prompts repeat an earlier one",)


def test_column_family_wins(tmp_path):
    path = write(tmp_path, "a.csv", "prompt,family\na red dog,x\na red dog,y\nmy house,x\n")
    found = read_prompts(path)
    assert found.families == ["x", "y", "x"]
    assert found.columns == {}


def test_column_type_of_something_else_is_kept(tmp_path):
    found = read_prompts(write(tmp_path, "a.csv", "prompt,type\na,oil\nb,ink\n"))
    assert found.kinds == [None, None]
    assert found.columns == {"type": ["oil", "ink"]}


def test_lists_are_frozen_in_place(tmp_path):
    found = read_prompts(write(tmp_path, "a.txt", "a\n"))
    assert isinstance(found, Prompts)
    with pytest.raises(AttributeError):
        found.prompts = []


# Refusals: one line, with the row and the remedy


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.parquet"])
def test_missing_empty_and_binary_files(tmp_path, name):
    refused(tmp_path / name, name, "cannot be read", "check the name")
    junk = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes()
    refused(write(tmp_path, name, junk), name)
    zeros = write(tmp_path, name, b"prompt\n\0\0\0")
    refused(zeros, name)
    refused(write(tmp_path, name, b""), name)


def test_empty_in_its_own_way(tmp_path):
    refused(write(tmp_path, "a.csv", "prompt,type\n"), "holds no prompts")
    refused(write(tmp_path, "a.json", "[]"), "holds no prompts")
    refused(write(tmp_path, "a.txt", "\n \n\t\n"), "holds no prompts")


def test_what_is_no_list(tmp_path):
    refused(tmp_path, "is a directory")
    refused(tmp_path / "a.docx", "'.docx' is unknown", ".csv", ".parquet")
    refused(tmp_path / "list", "'' is unknown")


def test_latin_text(tmp_path):
    refused(write(tmp_path, "a.txt", "Kätzchen".encode("latin-1")), "no UTF-8 text (byte 1)")


def test_columns_that_are_not_there(tmp_path):
    path = write(tmp_path, "a.csv", "words,url\na,b\n")
    refused(path, "'words', 'url'", "prompt, caption, text", "rename")
    refused(path, "'title'", column="title")
    assert read_prompts(path, column="words").prompts == ["a"]


@pytest.mark.parametrize("value", [float("nan"), None, "", "  "])
def test_missing_prompts_are_named(tmp_path, value):
    rows = [{"caption": "a"}, {"caption": value}]
    text = "\n".join(map(json.dumps, rows))
    refused(write(tmp_path, "a.jsonl", text), "line 2: the prompt is missing", "remove the row")
    pq.write_table(
        pa.table({"caption": pa.array(["a", value], from_pandas=True)}), tmp_path / "a.parquet"
    )
    refused(tmp_path / "a.parquet", "row 2: the prompt is missing")


def test_missing_prompt_in_a_table_names_its_line(tmp_path):
    path = write(tmp_path, "a.csv", 'prompt,n\n"two\nlines",1\n,2\n')
    refused(path, "line 4: the prompt is missing")


@pytest.mark.parametrize("value", [3, 0.5, ["a"], {"a": 1}, True])
def test_prompts_that_are_no_text(tmp_path, value):
    path = write(tmp_path, "a.json", json.dumps([{"prompt": "a"}, {"prompt": value}]))
    refused(path, "entry 2: the prompt is", type(value).__name__, "no text")


def test_entries_that_are_no_objects(tmp_path):
    refused(write(tmp_path, "a.json", "[[1]]"), "entry 1 is a list")
    refused(write(tmp_path, "a.jsonl", '{"prompt": "a"}\n5\n'), "line 2 is a int")


def test_half_a_character(tmp_path):
    refused(write(tmp_path, "a.json", '["\\ud800"]'), "entry 1", "half a character")


@pytest.mark.parametrize("text", ['{"prompt": "a"}\n{"prompt": \n', "[" * 100_000])
def test_damaged_json(tmp_path, text):
    refused(write(tmp_path, "a.jsonl", text), "is no JSON")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n,prompt\n1,a, b\n2,c\n", ["comma", "line 2 has 3 fields, the header 2", "quotes"]),
        ('n;prompt\n1;"never closed\n2;b\n', ["semicolon", "line 2 is damaged"]),
        ('n;prompt\n1;"a" b\n', ["semicolon", "line 2 is damaged"]),
        ("prompt,prompt\na,b\n", ["two columns named 'prompt'"]),
        ("a;prompt,b\n1;x,2\n", ["semicolon and comma", "quote"]),
    ],
)
def test_damaged_tables(tmp_path, text, words):
    refused(write(tmp_path, "a.csv", text), *words)


def test_a_kind_that_is_unknown_beside_known_ones(tmp_path):
    path = write(tmp_path, "a.csv", "prompt,type\na,VM\nb,verbatm\n")
    refused(path, "line 3", "type = 'verbatm' is unknown", "template")


def test_a_family_that_is_missing(tmp_path):
    path = write(tmp_path, "a.csv", "prompt,family\na,x\nb,\n")
    refused(path, "line 3", "family is missing", "remove the column")


# Families


def test_leading_words_join_and_common_words_do_not():
    floors = [f"Acme Floors {a} {i:05d}_E{i}" for i, a in enumerate(["oak", "pine", "ash", "elm"])]
    others = ["a photo of the dog", "a photo of the cat", "an image of a red house", "The Dog!"]
    families = prompt_families([*floors, *others])
    assert families[:4] == ["acme floors"] * 4
    assert families[4:] == ["dog", "cat", "red house", "dog"]


def test_overlap_joins_what_begins_otherwise():
    rugs = ["Lilah Gray Area Rug by Mills", "Dark Lilah Gray Area Rug by Mills"]
    assert len(set(prompt_families(rugs))) == 1
    assert len(set(prompt_families(["red dog", "blue dog"]))) == 2


def test_equal_words_in_another_order_are_one_family():
    assert len(set(prompt_families(["red dog runs", "runs red dog"]))) == 1


def test_chains_join():
    words = [f"w{i}" for i in range(8)]
    chain = [" ".join(words[i : i + 5]) for i in range(4)]  # neighbours share 4 of 6
    assert len(set(prompt_families(chain))) == 1
    assert len(set(prompt_families([chain[0], chain[3]]))) == 2


def test_labels_do_not_depend_on_order():
    rng = np.random.default_rng(1)
    prompts = [" ".join(rng.choice(list("abcdefghij"), 4)) for _ in range(60)]
    label = dict(zip(prompts, prompt_families(prompts), strict=True))
    for _ in range(5):
        mixed = [prompts[i] for i in rng.permutation(len(prompts))]
        assert prompt_families(mixed) == [label[p] for p in mixed]


def test_prompts_without_telling_words():
    prompts = ["the photo of an image", "A photo, of the image?", "...", "", "!", "..."]
    families = prompt_families(prompts)
    assert families[2] == families[5]
    assert len({families[i] for i in (0, 2, 3, 4)}) == 4
    assert all(w in _COMMON for w in ("the", "photo", "of", "an", "image", "a"))


@pytest.mark.parametrize("similar", [0.3, 0.5, 0.6, 0.75, 1.0])
def test_no_pair_of_similar_sets_is_lost(similar):
    rng = np.random.default_rng(2)
    words = [f"w{i}" for i in range(12)]
    sets = list({frozenset(rng.choice(words, rng.integers(1, 8))) for _ in range(80)})
    found = {frozenset(p) for p in _overlapping(sets, similar)}
    truth = {
        frozenset((i, j))
        for i, j in itertools.combinations(range(len(sets)), 2)
        if len(sets[i] & sets[j]) >= similar * len(sets[i] | sets[j]) - 1e-9
    }
    assert found == truth
    assert truth or similar == 1.0
