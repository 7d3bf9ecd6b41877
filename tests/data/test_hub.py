"""Loaders on hand-written samples of each schema: messages, splits, sampling."""

import json
import random

import pytest

from distill_energy.data.formats import FORMATS, conversation
from distill_energy.data.hub import Smallest, files_of, prompt_key, read_rows, sample
from distill_energy.data.stage import main
from distill_energy.errors import UserError

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
        "n_train": n_train, "n_validation": n_validation, "seed": 0, "max_length": 512,
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
        "n_train": 12, "n_validation": 3, "seed": 0, "max_length": 1024,
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
    spec = {"source": "files", "path": str(tmp_path / "tulu.parquet"), "format": "tulu3"}
    read = [conversation(row, "tulu3") for row in read_rows(spec)]
    assert read == [conversation(row, "tulu3") for row in rows]
    local_hub = {"source": "hub", "id": str(tmp_path), "split": "train", "format": "tulu3"}
    assert len(list(read_rows(local_hub))) == len(rows)


def test_unreadable_data_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        files_of(str(tmp_path / "absent.jsonl"))
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match=r"broken\.jsonl"):
        list(read_rows({"source": "files", "path": str(tmp_path / "broken.jsonl")}))


def test_formats_are_those_of_the_configuration():
    from typing import get_args

    from distill_energy.config.sources import FileData, HubData

    for section in (HubData, FileData):
        assert set(get_args(section.model_fields["format"].annotation)) == set(FORMATS)
