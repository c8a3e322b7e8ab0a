"""Rejection sampling (paper, section 3.2.3): K answers to each prompt, the best of them by the reward models kept.

In: a model, Prompts, reward models, and Samples of earlier rounds. Out: Samples on stdout, in the order of the prompts,
for ``sft``; and a report: reward against N (Figure 7), by temperature (Figure 8).
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def reject_sample(
    model: options.Model,
    helpfulness: Annotated[Path, typer.Option(help="The reward model for helpfulness.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="JSON lines of Prompts; stdin if none.")] = None,
    out: options.Records = None,
    k: options.Samples = 16,
    safety: Annotated[
        Path | None,
        typer.Option(help="That for safety: it decides on prompts tagged safety, and on answers it takes for unsafe."),
    ] = None,
    pool: Annotated[
        list[str], typer.Option(help="Samples of an earlier round, which are in the choice as well; repeatable.")
    ] = [],  # noqa: B006
    kept: options.Kept = "best",
    report: options.Report = None,
    temperature: options.Temperatures = [1.0],  # noqa: B006
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    truncate: options.Truncate = False,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    cache_memory: options.CacheMemory = None,
    tensor_parallel: options.TensorParallel = 1,
    shard: options.ShardOf = Shard(),
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Sample K answers to each prompt and keep the best, to fine-tune on.

    An answer's reward is its helpfulness score, or its safety score where the prompt is tagged safety or
    sigmoid(safety score) < 0.15. One that cannot be judged or has no text is not kept, and counted. Samples of --pool
    are scored anew where other reward models, or these in another precision, have scored them. With --out a run that
    was killed goes on with the prompts that were left. The paper's best temperature moves from round to round (1.2 to
    1.3 after RLHF): 1, and the whole distribution (--top-p 1), are ours; try several.

    Example: llamactl reject-sample chat prompts.jsonl -k 16 --helpfulness helpful-rm --safety safe-rm -o best.jsonl
    """
    settings = dict(locals())

    from collections.abc import Iterator, Sequence
    from typing import Any

    from llamactl import hardware, ui
    from llamactl.align import rejection
    from llamactl.align.choice import Choice
    from llamactl.align.judges import Judges
    from llamactl.align.rejection import Draw
    from llamactl.artifacts import journal, jsonl
    from llamactl.artifacts.records import Prompt, Sample
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.heads import RewardModel
    from llamactl.model.llama import Llama
    from llamactl.text import asking, dialogue
    from llamactl.text.judging import prompt_key
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    if len(set(temperature)) < len(temperature) or len(temperature) > k:
        given = ", ".join(f"{one:g}" for one in temperature)
        raise Fault("--temperature", f"{given} for {k} samples a prompt", "give each once, and not more than -k")
    places = {"helpfulness": helpfulness, "safety": safety} if safety else {"helpfulness": helpfulness}
    config, stored = Llama.described(model)
    tokenizer = Tokenizer.load(model)
    tokenizer.fitting(config.vocab, model)
    for name, place in places.items():
        RewardModel.described(place)  # raises Fault where it is none, which is to be said first
        if Tokenizer.load(place).proto != tokenizer.proto:
            problem = f"has another tokenizer than {model}"
            raise Fault(place, problem, f"llamactl generate, then score --reward {name}={place}")
    judges = Judges(places, truncate, allow_tags)
    if fault := planning.undivided([config, *judges.shapes], ui.world_size(), tensor_parallel):
        raise fault
    settings["precision"] = precision or [stored, judges.stored]
    names = prompts or [jsonl.STDIN]
    jsonl.by_every_process([*names, *pool])
    run = Run(
        "reject-sample", settings,
        {"model": [model], **{name: [place] for name, place in places.items()}, "pool": pool, "prompts": names}, out,
        aside={"--report": report},
    )  # fmt: skip
    if run.already_made(announce=False):
        return
    target = devices.chosen(device)
    run.effort.use(devices.title(target), devices.gpus(target))
    devices.keep_freed_memory()
    digests = {one["as"]: one["sha256"] for one in run.inputs}
    most = None if kept == "all" else 1 if kept == "best" else int(kept)
    choice = Choice(judges, {name: digests[name] for name in places}, precision or judges.stored, most)

    asked: list[tuple[jsonl.Found[Prompt], asking.Asked, bool]] = []  # and whether it is the first to ask this
    keys: set[bytes] = set()
    for found in jsonl.read(names, Prompt, shard=shard, refuse=run.refuse):
        try:
            one = asking.asked(found, tokenizer, config.context, allow_tags)
            judges.check(found)
        except Fault as fault:
            run.refuse(fault)
            continue
        key = prompt_key(found.record.messages)
        asked.append((found, one, key not in keys))
        keys.add(key)
    if pool and (again := len(asked) - len(keys)):
        run.noted["prompts asked again, whose pool samples are in the choice for the first"] = again
    if not safety and (tagged := sum(found.record.safety for found, *_ in asked)):
        run.noted["prompts tagged safety, where helpfulness alone decides"] = tagged
    if problem := dialogue.stranger(model):
        ui.warn(f"{model}: {problem}")
    temperatures = tuple(temperature[index % len(temperature)] for index in range(k))
    if temperatures.count(0) > 1:
        ui.warn(f"--temperature 0 is greedy: its {temperatures.count(0)} samples of a prompt are all one")

    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)

    def rounds(some: Sequence[tuple[jsonl.Found[Prompt], asking.Asked, bool]]) -> Iterator[tuple[int, Any]]:
        """Of each prompt, as its answers are there, those that are kept, and what is to be said of all."""
        requests = (sampler.Request(one.ids, temperatures) for _, one, _ in some)
        for place, answers in sampler.finished(network, requests, sampling, memory):
            found, one, first = some[place]
            drawn = []
            for index, answer in enumerate(answers):
                sample = one.sampled(
                    answer.ids, answer.stopped, tokenizer, model,
                    temperature=temperatures[index], top_p=top_p, top_k=top_k, seed=seed, index=index,
                )  # fmt: skip
                drawn.append((sample | {"k": k, "model_sha256": digests["model"]}, len(answer.ids)))
            best, draw = choice.best(found, drawn, pooled=first)
            yield place, (best, draw._asdict())

    with parallel.joined(target, tensor_parallel, stops=False) as job:
        network = sampler.load(model, target, devices.PRECISIONS[precision or stored], part=job.part)
        judges.load(target, devices.PRECISIONS[precision or judges.stored], part=job.part)
        for earlier in jsonl.read(pool, Sample, refuse=run.refuse):
            if prompt_key(earlier.record.messages) not in keys:
                run.skipped["pool samples of prompts that are not asked"] += 1
                continue
            if not earlier.record.response.strip():
                run.noted["answers without a text, not kept"] += 1
                continue
            try:
                run.noted[f"pool samples {'scored anew' if choice.pool(earlier) else 'taken as scored'}"] += 1
            except Fault as fault:
                run.refuse(fault)
        with journal.kept(run) as through, job.metered(run):
            with ui.Working("reject-sample", len(asked), "prompts", start=len(through)) as bar:
                for number, (best, facts) in job.rest(through, asked, rounds):
                    draw = Draw(**facts)
                    run.done.update(prompts=1, samples=k, tokens=sum(draw.tokens), kept=len(best))
                    for where, problem in draw.refused:
                        run.skip(Fault(where, problem), "answers that cannot be judged")
                    beside = {"answers without a text, not kept": sum(draw.empty), "tokens cut off": sum(draw.cut)}
                    run.noted.update({what: times for what, times in beside.items() if times})
                    through.add(number, best, facts)
                    bar.advance(1, tokens=run.done["tokens"])
            if job.rank:
                return
            draws = [Draw(**facts) for facts in through.facts]
            run.facts["report"] = made = rejection.report(draws, temperatures, seed)
    run.write_report()
    for title, rows, header in rejection.tables(made):
        ui.note("")
        ui.table(title, rows, header)
    if advice := rejection.advice(made):
        ui.note(advice)
