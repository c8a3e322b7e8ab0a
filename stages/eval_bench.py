"""Measure a model by benchmarks (paper, section 2.3, Table 3): what it knows, understands, reckons and programs.

In: a model, and benchmarks' files as their authors publish them. Out: Scores on stdout, a table as the paper's.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def bench(
    model: options.Model,
    benchmarks: Annotated[list[str], typer.Argument(help="NAME=PATH each: a file of the benchmark, or its folder.")],
    shots: Annotated[
        int | None, typer.Option(help="Examples before each question.", show_default="as in the paper", min=0)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask so many questions of each, spread evenly.", show_default="all", min=1)
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code", help="Run the programs that the model writes. They can do what you can: contain it."
        ),
    ] = False,
    answers: Annotated[Path | None, typer.Option(help="Write questions, answers and verdicts here.")] = None,
    k: options.Samples = 1,
    temperature: options.Temperature = 0.1,
    top_p: options.TopP = 0.95,
    out: options.Records = None,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    cache_memory: options.CacheMemory = None,
    tensor_parallel: options.TensorParallel = 1,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Benchmarks of the paper's Table 3, by their own files: accuracy, exact match, pass@1, and means of groups.

    NAMEs are humaneval, mbpp; piqa, siqa, hellaswag, winogrande, arc-easy, arc-challenge, openbookqa, commonsenseqa;
    nq, triviaqa; squad, boolq; gsm8k, math; mmlu, bbh, agieval; and winograd, svamp. A PATH that ends on one needs no
    NAME. Examples are those of the benchmark, of its train file beside, or its first questions, which are not asked
    then. Where the context has no room for all, the last are left out, and a question without room is not asked: both
    are counted. Answers are written greedily, programs sampled: -k of each, for pass@1, @10 and @100. Errors are by
    bootstrap over questions, drawn with --seed. With --out a run that was killed goes on with the questions that were
    left.

    Example: llamactl eval bench base mmlu=mmlu/data gsm8k=gsm8k > scores.jsonl
    """
    settings = dict(locals())

    from collections import Counter
    from collections.abc import Iterator, Sequence
    from itertools import chain

    from msgspec import to_builtins

    from llamactl import hardware, ui
    from llamactl.artifacts import journal, jsonl
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.evals.bench import answering, programs, results
    from llamactl.evals.bench.known import Given, Passed
    from llamactl.evals.bench.questions import Item
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.llama import Llama
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    given = {one.name: one for one in map(Given.of, benchmarks)}
    if len(given) < len(benchmarks):
        raise Fault(", ".join(benchmarks), "name a benchmark twice", "name each once")
    for name, one in given.items():
        if isinstance(one.benchmark.how, Passed) and not run_code:
            raise Fault(name, "is measured by running programs that the model writes", "--run-code, in a container")
    config, stored = Llama.described(model)
    if fault := planning.undivided([config], ui.world_size(), tensor_parallel):
        raise fault
    settings = {name: value for name, value in settings.items() if name not in ("answers", "benchmarks", "run_code")}
    settings |= {"precision": precision or stored, "benchmarks": list(given)}
    read = {name: one.read for name, one in given.items()}
    run = Run("eval bench", settings, {"model": [model], **read}, out, aside={"--answers": answers})
    if run.already_made(announce=False):
        return
    if any(isinstance(one.benchmark.how, Passed) for one in given.values()):
        programs.tried()
    tokenizer, target = Tokenizer.load(model), devices.chosen(device)
    tokenizer.fitting(config.vocab, model)
    run.effort.use(devices.title(target), devices.gpus(target))
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)
    drawing = answering.Drawing(k, temperature, top_p, seed, memory)
    asked = [(name, item) for name, one in given.items() for item in one.items(shots, limit)]
    devices.keep_freed_memory()

    def answered(some: Sequence[tuple[str, Item]]) -> Iterator[tuple[int, answering.Found]]:
        """What comes of each question, one benchmark after the other."""
        for name, one in given.items():
            places = [place for place, (of, _) in enumerate(some) if of == name]
            work = answering.at(network, tokenizer, one.benchmark.how, drawing)
            for number, value in work([some[place][1] for place in places]):
                yield places[number], value

    with parallel.joined(target, tensor_parallel, stops=False) as job, journal.kept(run) as through, job.metered(run):
        # as for samples, also where none is drawn: what a benchmark gives does not depend on others beside it
        network = sampler.load(model, target, devices.PRECISIONS[precision or stored], part=job.part)
        with ui.Working("eval bench", len(asked), "questions", len(through)) as bar:
            for number, value in job.rest(through, asked, answered):
                through.add(number, [], {"found": value})
                bar.advance(1, benchmark=asked[number][0])
        if not ui.first_rank():
            return
        outcomes: dict[str, list[answering.Outcome]] = {name: [] for name in given}
        skipped, noted = Counter[str](), Counter[str]()
        for (name, item), facts in zip(asked, through.facts, strict=False):  # after the last may stand Scores already
            if found := facts["found"]:
                outcomes[name].append(answering.Outcome.of(name, item, given[name].benchmark.how, found))
                noted[f"{name}: examples left out, as the context is full"] += len(item.examples) - found["shots"]
                noted[f"{name}: answers cut off"] += found.get("cut", 0)
            else:
                skipped[f"{name}: questions longer than the context"] += 1
        if not any(outcomes.values()):
            raise Fault(
                ", ".join(given), f"no question has room in a context of {config.context:,} tokens", "ask others"
            )
        measured = {name: [*results.measured(name, some, seed)] for name, some in outcomes.items() if some}
        told = {name: answering.told(one.benchmark.how, drawing, config.context) for name, one in given.items()}
        scores = results.scores(model, measured, outcomes, told, seed)
        through.add(len(asked), [to_builtins(score) for score in scores])
        run.done["questions"] = sum(map(len, outcomes.values()))
        run.skipped, run.noted = +skipped, +noted
        with run.side("--answers") as shown:
            if shown and answers:
                with jsonl.compressed(shown, answers.name) as packed:
                    for outcome in chain.from_iterable(outcomes.values()):
                        jsonl.Writer(packed).write(outcome.record)
    for title, rows, header in results.tables(str(model), measured):
        ui.note("")
        ui.table(title, rows, header)
