"""Sample from a model: Prompts through the chat format, Documents continued as they are.

In: Prompts or Documents, or ``--text``. Out: Samples on stdout, in input order.
"""

from typing import Annotated

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def generate(
    model: options.Model,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="JSON lines of Prompts or Documents; stdin if none.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="One Document on the command line; streams to a terminal.")] = None,
    out: options.Records = None,
    k: options.Samples = 1,
    temperature: options.Temperature = 0.6,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    log_probs: Annotated[
        bool,
        typer.Option(
            "--log-probs", help="Add log p of each token, at the temperature, whatever top-p and top-k; to rounding."
        ),
    ] = False,
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
    """Continue texts, or answer prompts. The defaults for sampling are the reference release's.

    A sample depends on (seed, prompt, index), not on what else is asked, its order, -k, or the shard: in fp32 token for
    token. In bf16, where a GPU or a CPU has instructions for it, rounding depends on what is computed beside a sample,
    and it may come out otherwise. With --out a run that was killed goes on with the prompts that were left.

    Example: llamactl generate base --text "Return the"
    """
    settings = dict(locals())

    import sys
    from collections.abc import Iterator, Sequence
    from functools import partial
    from typing import Any

    from llamactl import hardware, ui
    from llamactl.artifacts import journal, jsonl
    from llamactl.artifacts.records import Document, Prompt
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama
    from llamactl.text import asking, dialogue
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    if text is not None and prompts:
        raise Fault("--text", f"given together with {prompts[0]}", "give one of them")
    files = [] if text is not None else prompts or [jsonl.STDIN]
    jsonl.by_every_process(files)
    config, stored = Llama.described(model)
    if fault := planning.undivided([config], ui.world_size(), tensor_parallel):
        raise fault
    settings["precision"] = precision or stored
    run = Run("generate", settings, {"model": [model], "prompts": files}, out)
    if run.already_made(announce=False):
        return
    tokenizer, target = Tokenizer.load(model), devices.chosen(device)
    tokenizer.fitting(config.vocab, model)
    run.effort.use(devices.title(target), devices.gpus(target))
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)
    if temperature == 0 and k > 1:
        ui.warn(f"--temperature 0 is greedy: the {k} samples of a prompt are all one")

    asked: list[asking.Asked] = []
    given = (
        [asking.document(text)]
        if text is not None
        else jsonl.read(files, Prompt, Document, shard=shard, refuse=run.refuse)
    )
    for found in given:
        try:
            asked.append(asking.asked(found, tokenizer, config.context, allow_tags))
        except Fault as fault:
            run.refuse(fault)
    if any(one.text is None for one in asked) and (problem := dialogue.stranger(model)):
        ui.warn(f"{model}: {problem}")
    load = partial(sampler.load, model, target, devices.PRECISIONS[precision or stored], k * len(asked))
    temperatures = (temperature,) * k
    devices.keep_freed_memory()

    if text is not None and k == 1 and out is None and sys.stdout and sys.stdout.isatty() and ui.world_size() == 1:
        network = load()
        drawn = sampler.decode(network, [sampler.Request(asked[0].ids, temperatures)], sampling, memory)
        for piece in asking.streamed(asked[0], drawn, tokenizer):
            print(piece, end="", flush=True)
        print()
        return

    def answered(some: Sequence[asking.Asked]) -> Iterator[tuple[int, list[Any]]]:
        """Of each what was sampled, as it is there."""
        requests = (sampler.Request(one.ids, temperatures) for one in some)
        for place, answers in sampler.finished(network, requests, sampling, memory):
            yield place, [(answer.ids, answer.stopped, answer.log_probs if log_probs else []) for answer in answers]

    with parallel.joined(target, tensor_parallel, stops=False) as job, journal.kept(run) as through, job.metered(run):
        network = load(job.part)
        with ui.Working("generate", k * len(asked), "samples", k * len(through)) as bar:
            for number, answers in job.rest(through, asked, answered):
                samples = []
                for index, (ids, stopped, chances) in enumerate(answers):
                    sample = asked[number].sampled(
                        ids, stopped, tokenizer, model,
                        temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, index=index,
                    )  # fmt: skip
                    samples.append(sample | ({"log_probs": chances} if log_probs else {}))
                    run.done.update(samples=1, tokens=len(ids))
                through.add(number, samples)
                bar.advance(k, tokens=run.done["tokens"])
