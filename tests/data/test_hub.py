"""Loaders on hand-written samples of each schema: messages, splits, sampling."""

import json
import random

import pytest

from distill_energy.config.sources import FileData, HubData
from distill_energy.data.files import files_of
from distill_energy.data.formats import FORMATS, Filtered, Refused, conversation, read
from distill_energy.data.hub import Smallest, open_rows, prompt_key, read_rows, sample
from distill_energy.data.stage import main
from distill_energy.errors import UserError
from distill_energy.ledger.rows import left_out

MODEL = {"source": "random", "layers": 1, "hidden": 16, "heads": 1, "vocabulary": 300, "seed": 0}


def rows_of(samples, name):
    return [json.loads(line) for line in (samples / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_tulu3(samples):
    found = {row["id"]: conversation(row, "tulu3") for row in rows_of(samples, "tulu3")}
    assert [m["role"] for m in found["oasst1_104"].messages] == ["user", "assistant"] * 2
    assert found["wildchat_77"].messages[0] == {"role": "system", "content": "You answer in one word."}
    assert found["wildchat_77"].prompt == "Colour of the sky?"
    assert found["hardcoded_1"] is None  # an empty answer
    assert [m["role"] for m in found["no_robots_5"].messages] == ["user", "assistant"]  # nothing answers the last turn
    assert found["flan_3"].id.startswith("flan_3-")


def test_openr1_math(samples):
    rows = rows_of(samples, "openr1_math")
    found = [conversation(row, "openr1_math") for row in rows]
    assert all(item.prompt == row["problem"] for item, row in zip(found, rows, strict=True))
    assert found[0].response == rows[0]["messages"][1]["content"]
    assert found[5].response == rows[5]["generations"][1]  # the first is not verified
    assert found[6].response == rows[6]["solution"]  # none is verified
    assert rows[3]["uuid"] is None and len(found[3].id) == 16  # no id: the content's hash


def test_codeforces_cots(samples):
    rows = rows_of(samples, "codeforces_cots")
    found = [conversation(row, "codeforces_cots") for row in rows]
    assert found[4] is None  # cut by its length limit
    assert found[0].id != found[1].id and rows[0]["id"] == rows[1]["id"]
    assert prompt_key(found[0]) == prompt_key(found[1])


@pytest.mark.parametrize(("name", "n_train", "n_validation"), [
    ("tulu3", 10, 4), ("openr1_math", 5, 2), ("codeforces_cots", 2, 1), ("prompt_response", 9, 3),
])  # fmt: skip
def test_every_format_becomes_an_artifact(samples, context, tokenizer, name, n_train, n_validation):
    import pyarrow.parquet as pq

    spec = {
        "source": "files", "path": str(samples / f"{name}.jsonl"), "format": name,
        "n_train": n_train, "n_validation": n_validation, "seed": 0, "max_length": 512, "max_dropped": 0.1,
    }  # fmt: skip
    ctx = context({"dataset": spec, "model": MODEL})
    results = main(ctx)
    train = pq.read_table(ctx.out / "train.parquet").to_pylist()
    validation = pq.read_table(ctx.out / "validation.parquet").to_pylist()
    assert (len(train), len(validation)) == (n_train, n_validation)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in validation}
    for row in train + validation:
        assert len(row["input_ids"]) == len(row["loss_mask"]) <= 512
        assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]
    assert ctx.meter.tokens["processed"] == sum(len(row["input_ids"]) for row in train + validation)
    assert ctx.meter.tokens["loss"] == sum(sum(row["loss_mask"]) for row in train + validation)
    assert results["train_tokens"] + results["validation_tokens"] == ctx.meter.tokens["processed"]


def test_multi_turn_labels_reach_the_artifact(samples, context, tokenizer):
    import pyarrow.parquet as pq

    spec = {
        "source": "files", "path": str(samples / "tulu3.jsonl"), "format": "tulu3",
        "n_train": 12, "n_validation": 3, "seed": 0, "max_length": 1024, "max_dropped": 0.1,
    }  # fmt: skip
    ctx = context({"dataset": spec, "model": MODEL})
    results = main(ctx)
    rows = [row for name in ("train", "validation") for row in pq.read_table(ctx.out / f"{name}.parquet").to_pylist()]
    row = next(row for row in rows if row["id"].startswith("oasst1_104"))
    labels = tokenizer.decode([t for t, m in zip(row["input_ids"], row["loss_mask"], strict=True) if m])
    assert labels == (
        "A year with 366 days, so that the calendar keeps pace with the sun.<|im_end|>"
        "Those divisible by four, except centuries not divisible by 400.<|im_end|>"
    )
    assert results["n_repeated_rows"] == 1 and results["n_unusable"] == 1


def test_truncation_and_drops_are_counted(samples, context, tokenizer):
    import pyarrow.parquet as pq

    from distill_energy.data.chat import encode

    spec = {
        "source": "files", "path": str(samples / "openr1_math.jsonl"), "format": "openr1_math",
        "n_train": 3, "n_validation": 2, "seed": 0, "max_length": 100,
    }  # fmt: skip
    ctx = context({"dataset": spec, "model": MODEL})
    results = main(ctx)
    whole = {
        item.id: len(encode(tokenizer, item.messages).input_ids)
        for item in (conversation(row, "openr1_math") for row in rows_of(samples, "openr1_math"))
    }
    used = [i for name in ("train", "validation") for i in pq.read_table(ctx.out / f"{name}.parquet")["id"].to_pylist()]
    assert results["n_truncated"] == sum(whole[i] > 100 for i in used) > 0
    with pytest.raises(UserError, match="only 0 usable"):  # the prompt alone fills the length: no label is left
        main(context({"dataset": spec | {"max_length": 20}, "model": MODEL}))


@pytest.mark.parametrize("name", ["tulu3", "prompt_response"])
def test_the_order_of_the_rows_decides_nothing(samples, name):
    rows = rows_of(samples, name)

    def ids(given):
        source = sample(given, name, 6, 3, seed=5)
        validation = [item.id.rsplit("-", 1)[-1] for item, _ in zip(source.validation, range(3), strict=False)]
        return validation, [item.id.rsplit("-", 1)[-1] for item, _ in zip(source.train, range(6), strict=False)]

    first = ids(rows)
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        assert ids(rows) == first
    assert not set(first[0]) & set(first[1])


def test_answers_to_one_prompt_stay_on_one_side(samples):
    rows = rows_of(samples, "codeforces_cots")
    for seed in range(20):
        source = sample(rows, "codeforces_cots", 4, 1, seed=seed)
        validation = {prompt_key(next(source.validation))}
        train = [prompt_key(item) for item in source.train]
        assert len(train) in (3, 4) and not validation & set(train)


def test_scan_bounds_what_is_read():
    def endless():
        i = 0
        while True:
            i += 1
            yield {"prompt": f"p{i}", "response": "r"}

    source = sample(endless(), "prompt_response", 5, 2, seed=0, scan=100)
    assert source.counts["n_scanned"] == 100


def test_smallest_keeps_the_smallest():
    numbers = list(range(100))
    random.Random(0).shuffle(numbers)
    keep = Smallest(7)
    for number in numbers:
        keep.add(number / 100, conversation({"prompt": f"p{number}", "response": "r"}, "prompt_response"))
    assert [item.prompt for item in keep.ascending()] == [f"p{i}" for i in range(7)]


def test_parquet_and_json_lines_give_the_same_rows(samples, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = rows_of(samples, "tulu3")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tulu.parquet")
    sizes = {"n_train": 1, "n_validation": 1}
    spec = FileData(source="files", path=str(tmp_path / "tulu.parquet"), format="tulu3", **sizes)
    read = [conversation(row, "tulu3") for row in read_rows(spec)]
    assert read == [conversation(row, "tulu3") for row in rows]
    local_hub = HubData(source="hub", id=str(tmp_path), format="tulu3", **sizes)
    assert len(list(read_rows(local_hub))) == len(rows)


def test_unreadable_data_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        files_of(str(tmp_path / "absent.jsonl"))
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match=r"broken\.jsonl"):
        list(read_rows(files(tmp_path / "broken.jsonl")))


def test_formats_are_those_of_the_configuration():
    from typing import get_args

    from distill_energy.config.sources import FileData, HubData

    for section in (HubData, FileData):
        assert set(get_args(section.model_fields["format"].annotation)) == set(FORMATS)


def files(path):
    return FileData(source="files", path=str(path), n_train=1, n_validation=1)


def file_of(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"source": "files", "path": str(path), "format": "prompt_response", "n_train": 3, "n_validation": 1}


def test_a_number_late_in_a_file_changes_no_other_row(tmp_path):
    """10 MB of texts, then a number: read as written, each for itself."""
    rows = [{"prompt": f"p{i}", "response": f"line {i}\nmore " + "x" * 1800} for i in range(6000)]
    spec = file_of(tmp_path, [*rows, {"prompt": "last", "response": 7}])
    found = list(read_rows(FileData(**spec)))
    assert [dict(row) for row in found[:-1]] == rows
    assert read(found[-1], "prompt_response").response == "7"


@pytest.mark.parametrize("answer", ['"yes"', "42", "2024-03-01", "null", "true", " padded "])
def test_a_text_is_never_taken_for_something_else(tmp_path, answer):
    rows = [{"prompt": f"p{i}", "response": answer} for i in range(5)]
    spec = file_of(tmp_path, [*rows, {"prompt": "q", "response": "r", "extra": {"late": 1}}])
    assert [read(row, "prompt_response").response for row in read_rows(FileData(**spec))][:5] == [answer] * 5


@pytest.mark.parametrize("name", [
    "a.JSONL", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz", "a.json", "a.parquet",
])  # fmt: skip
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": f"p{i}", "response": f'é "{i}",\nso'} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if ".csv" in name:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
        lines = text.getvalue()
    if name.endswith(".json"):
        lines = json.dumps(rows, indent=1)
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith((".gz", ".zst")):
        with pa.CompressedOutputStream(str(path), "gzip" if name.endswith(".gz") else "zstd") as out:
            out.write(lines.encode())
    else:
        path.write_bytes(lines.encode())
    found = list(read_rows(files(path)))
    assert [dict(row) for row in found] == rows
    assert found[2].place == f"{path}, row 3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": 1}\n[1]\n', r"a\.jsonl, row 2: not an object of fields but a list"),
        ("a.jsonl", b'{"prompt": 1}\n{"x\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"{}\n\xff\n", r"a\.jsonl, line \d: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: not JSON"),
        ("a.csv", b"a,b\n1\n", r"a\.csv, row 1"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.txt", b"x", r"a\.txt is none of"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(files(tmp_path / name)))
    assert "\n" not in str(caught.value)


def said(row, name):
    return [(m["role"], m["content"]) for m in read(row, name).messages]


def test_fields_that_mean_something_are_carried_on():
    alpaca = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    assert said(alpaca, "prompt_response") == [("user", "Add.\n\n2 and 3"), ("assistant", "5")]
    dolly = {"instruction": "Who?", "context": "Ann came.", "response": "Ann"}
    assert said(dolly, "prompt_response") == [("user", "Who?\n\nAnn came."), ("assistant", "Ann")]
    orca = {"system_prompt": "Be brief.", "question": "q", "answer": "a"}
    assert said(orca, "prompt_response")[0] == ("system", "Be brief.")
    shared = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert said(shared, "sharegpt") == [("user", "q"), ("assistant", "a")]
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert said(pair, "preference") == [("user", "q"), ("assistant", "good")]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert said({"prompt": "q", "chosen": turns, "rejected": turns}, "preference") == said(
        {"messages": turns}, "messages"
    )
    assert said({"messages": json.dumps(turns)}, "messages") == said({"messages": turns}, "messages")
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    odd = [
        {"role": "Developer", "content": "s"},
        {"role": "USER", "content": parts},
        {"role": "Assistant", "content": "a"},
    ]
    assert said({"messages": odd}, "messages") == [("system", "s"), ("user", "one two"), ("assistant", "a")]
    thought = [turns[0], {**turns[1], "reasoning_content": "hm"}]
    assert read({"messages": thought}, "messages").messages[1]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]}, "messages", "null"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "critic", "content": "a"}]}, "messages", "'critic'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "before the user"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages", "no answer"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}, "messages", "empty"),
        ({"messages": "[{"}, "messages", "not JSON"),
        ({"conversations": [1]}, "messages", "conversations: another format"),
        ({"prompt": "q", "response": ["a"]}, "prompt_response", "list"),
        ({"prompt": "q", "response": True}, "prompt_response", "bool"),
        ({"prompt": "q", "response": None}, "prompt_response", "null"),
        ({"prompt": "q", "response": "a", "images": ["x"]}, "prompt_response", "images"),
        ({"prompt": "q", "response": "a", "weight": 0.5}, "prompt_response", "weight"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
            "messages",
            "not text",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages",
            "calls a tool",
        ),
    ],
)
def test_what_no_rule_carries_on_is_refused_with_its_reason(row, name, reason):
    with pytest.raises(Refused, match=reason):
        read(row, name)


def test_rows_of_weight_0_are_left_out():
    with pytest.raises(Filtered):
        read({"prompt": "q", "response": "a", "weight": 0}, "prompt_response")


def test_rows_that_differ_in_case_or_indentation_are_no_repeats(tmp_path):
    answers = ["def f():\n  x", "def f():\n    x", "DEF F():\n  x", "def f():\n  x"]
    source = open_rows(
        FileData(**file_of(tmp_path, [{"prompt": f"p{i % 2}", "response": a} for i, a in enumerate(answers)])),
        lambda m: None,
    )
    assert source.counts["n_repeated_rows"] == 0
    source = open_rows(FileData(**file_of(tmp_path, [{"prompt": "p", "response": a} for a in answers])), lambda m: None)
    assert source.counts["n_repeated_rows"] == 1


def test_refused_rows_are_counted_by_reason_and_stop_the_stage_above_a_share(tmp_path, context):
    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(150)]
    spec = file_of(tmp_path, [*rows, {"prompt": "p", "response": None}]) | {"seed": 0, "max_length": 512}
    results = main(context({"dataset": spec, "model": MODEL}))
    assert results["refused: response is null"] == results["n_unusable"] == 1
    assert left_out(results) == "refused: response is null (1)"  # in the ledger and on the page
    spec = file_of(tmp_path, [*rows, *[{"prompt": "p", "response": None}] * 2]) | {"seed": 0, "max_length": 512}
    with pytest.raises(
        UserError, match=r"2 of 152 rows are refused .*response is null: 2 \(first: .*rows\.jsonl, row 151\)"
    ):
        main(context({"dataset": spec, "model": MODEL}))
    main(context({"dataset": spec | {"max_dropped": 0.05}, "model": MODEL}))


def test_a_file_is_written_in_groups_that_arrow_can_hold(samples, context, monkeypatch, tmp_path):
    import pyarrow.parquet as pq

    from distill_energy.data import stage
    from distill_energy.train.examples import read_examples

    spec = file_of(tmp_path, [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]) | {
        "seed": 0,
        "max_length": 512,
    }
    whole = context({"dataset": spec | {"n_train": 10}, "model": MODEL}, out="whole")
    main(whole)
    monkeypatch.setattr(stage, "GROUP_ROWS", 3)
    cut = context({"dataset": spec | {"n_train": 10}, "model": MODEL}, out="cut")
    main(cut)
    assert pq.ParquetFile(cut.out / "train.parquet").num_row_groups == 4
    one, other = (read_examples(ctx.out / "train.parquet", 300) for ctx in (whole, cut))
    assert one.ids == other.ids and (one.tokens == other.tokens).all() and (one.offsets == other.offsets).all()
