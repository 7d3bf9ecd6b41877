"""The stage ``teacher_generation``: training prompts answered by the teacher become a data set like any other."""

from __future__ import annotations

from typing import Any

from ...config.params import GenerationParams
from ...context import Context


def make_engine(ctx: Context[GenerationParams], tokenizer):
    """The engine that the configuration names, its model loaded."""
    params, generation = ctx.params, ctx.params.generation
    if generation.engine == "transformers":
        from ...models.sources import load_model
        from .transformers_engine import Sampling, TransformersEngine

        device = "auto" if generation.tensor_parallel > 1 else None
        model = load_model(params.model, ctx.inputs, dtype=params.dtype, device=device)
        sampling = Sampling(generation.temperature, generation.top_p, generation.batch_size)
        engine = TransformersEngine(model, tokenizer, sampling)
        if engine.size < generation.batch_size:
            ctx.log(f"{type(model).__name__} reads pads as text: prompts are answered one at a time")
        return engine
    from .vllm_engine import VllmEngine, served_model

    return VllmEngine(
        served_model(params.model, ctx.inputs, ctx.work, tokenizer),
        ctx.work,
        generation.model_dump(include={"temperature", "top_p"}),
        max_length=params.max_length,
        dtype=params.dtype,
        seed=generation.seed,
        concurrency=generation.batch_size,
        tensor_parallel=generation.tensor_parallel,
    )


def main(ctx: Context[GenerationParams]) -> dict[str, Any]:
    """Answer the prompts of ``inputs["data"]/train.parquet`` shard by shard; write train and validation Parquet.

    Finished shards lie in ``ctx.work`` and are not made again after a kill. Tokens counted: ``generated`` (up to and
    including the end token) and ``processed`` (prompt and generated), once for each token that this attempt computed.
    """
    with ctx.meter.phase("start"):
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        from ...data.stage import check_made_with, schema
        from ...errors import UserError
        from ...models.fingerprint import tokenizer_hash
        from ...models.flops import flops_of_generation
        from ...models.sources import bare_model, load_tokenizer
        from ...store.atomic import write_parquet
        from . import jobs

    params, generation = ctx.params, ctx.params.generation
    tokenizer = load_tokenizer(params.model, ctx.inputs)
    check_made_with(ctx.inputs["data"] / "train.parquet", tokenizer)
    table = pq.read_table(ctx.inputs["data"] / "train.parquet", columns=["id", "prompt", "prompt_ids"])
    prompts = jobs.choose_prompts(
        table.to_pylist(),
        generation.n_prompts,
        generation.seed,
        generation.max_new_tokens,
        params.max_length,
    )
    if not prompts:
        raise UserError(f"{ctx.spec.name}: no training prompt leaves room for a response (max_length too small)")
    shards = jobs.shard(prompts, generation.batch_size)
    engine = None

    def count(prompt_tokens: int, generated: int, padding: int) -> None:
        ctx.meter.add_tokens("processed", prompt_tokens + generated)
        ctx.meter.add_tokens("generated", generated)
        ctx.meter.add_tokens("padding", padding)

    answers: list[jobs.Raw] = []
    stops: list[int] = []
    resumed = 0
    try:
        for index, members in enumerate(shards):
            path = ctx.work / f"answers-{index:05d}.parquet"
            found = jobs.load_shard(path, members)
            if found is None:
                if engine is None:
                    with ctx.meter.phase("load"):
                        engine = make_engine(ctx, tokenizer)
                found = engine.answer(members, jobs.shard_seed(generation.seed, index), count), engine.stops
                jobs.save_shard(path, *found)
                ctx.log(f"shard {index + 1} of {len(shards)}: {len(members)} answers")
            else:
                resumed += 1
            answers += found[0]
            stops = found[1]
    finally:
        if hasattr(engine, "close"):
            engine.close()
    rows, counts = jobs.rows_and_counts(prompts, answers, tokenizer, generation.min_new_tokens, stops)
    train, validation = jobs.split(rows, generation.validation_share, generation.seed)
    if not train or not validation:
        raise UserError(f"{ctx.spec.name}: only {len(rows)} of {len(prompts)} answers are usable: {counts}")
    described = generation.model_dump(mode="json")
    metadata = {
        "sampling": json.dumps(described, sort_keys=True),
        "engine": generation.engine,
        "stop_ids": json.dumps(stops),
    }
    metadata["tokenizer_sha256"] = tokenizer_hash(tokenizer)  # students with another tokenizer are refused
    columns = schema({"finish_reason": "string", "n_generated": "int32"})
    for name, part in (("train", train), ("validation", validation)):
        made = pa.Table.from_pylist(part, schema=columns).replace_schema_metadata(metadata)
        write_parquet(ctx.out / f"{name}.parquet", made)
    results = {
        "n_prompts": len(prompts),
        "n_train": len(train),
        "n_validation": len(validation),
        "generated_tokens": sum(len(answer.ids) for answer in answers),
        "mean_response_tokens": sum(row["n_generated"] for row in rows) / len(rows),
        "n_shards": len(shards),
        "n_shards_resumed": resumed,
    }
    made = {answer.id: len(answer.ids) for answer in answers}
    results |= flops_of_generation(
        bare_model(params.model, ctx.inputs),
        [len(prompt.prompt_ids) for prompt in prompts],
        [made[prompt.id] for prompt in prompts],
    )
    return results | counts | {f"sampling_{key}": value for key, value in described.items()}
