"""PPO with the paper's reward (section 3.2.3): the policy answers, reward models judge, and it learns from that.

In: a chat model, Prompts, reward models. Out: a model directory, metrics.jsonl, and samples.jsonl to look at.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options

SHOWN = 4  # answers of an iteration that are written down to be looked at


def ppo(
    model: options.Model,
    helpfulness: Annotated[Path, typer.Option(help="The reward model for helpfulness.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="JSON lines of Prompts; stdin if none.")] = None,
    out: options.Out = Path("ppo"),
    safety: Annotated[
        Path | None,
        typer.Option(help="That for safety: it decides on prompts tagged safety, and on answers it takes for unsafe."),
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(help="A third reward model, which decides nothing: an alarm is given where it drifts away."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="The model that KL is taken to.", show_default="MODEL")] = None,
    critic: Annotated[
        Path | None, typer.Option(help="A reward model that the critic starts as.", show_default="--helpfulness")
    ] = None,
    iterations: Annotated[
        int, typer.Option(help="Rounds of sampling and learning; the paper took 200 to 400.", min=1)
    ] = 200,
    batch_size: Annotated[int, typer.Option(help="Answers sampled an iteration, over all processes.", min=2)] = 512,
    mini_batch_size: Annotated[
        int, typer.Option(help="Of them a gradient step; each is learned from once.", min=1)
    ] = 64,
    micro_batch: Annotated[
        int | None, typer.Option(help="Of them at once.", show_default="4,096 tokens' worth", min=1)
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="beta: what KL costs.", show_default="0.01; 0.005 from 34b on", min=0.0),
    ] = None,
    frozen_layers: Annotated[
        int,
        typer.Option(
            help="So many of the policy's first layers, and its embeddings, do not learn; on one device the reference "
            "shares them. Ours: the paper trains all.",
            min=0,
        ),
    ] = 0,
    lr: Annotated[float, typer.Option(help=options.LR, min=0.0)] = 1e-6,
    clip: Annotated[float, typer.Option(help="Ratios count to 1 - and + so much.", min=0.0)] = 0.2,
    critic_lr: Annotated[
        float, typer.Option(help="The critic's learning rate. Ours: InstructGPT's; the paper says nothing.", min=0.0)
    ] = 9e-6,
    value_clip: Annotated[
        float, typer.Option(help="How far values may move an iteration. Ours, as --clip.", min=0.0)
    ] = 0.2,
    gamma: Annotated[float, typer.Option(help="Discount. Ours: none.", min=0.0, max=1.0)] = 1.0,
    gae_lambda: Annotated[
        float, typer.Option(help="Of generalised advantage estimation. Ours: the usual.", min=0.0, max=1.0)
    ] = 0.95,
    truncated: options.TruncatedReward = "-1",
    temperature: Annotated[float, typer.Option(help="Of sampling, and of all log-probabilities.", min=0.01)] = 1.0,
    max_new_tokens: options.MaxNewTokens = 256,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a prompt and its answer.", show_default="the model's", min=2)
    ] = None,
    eval: options.Evaluation = None,
    eval_every: options.EvalEvery = None,
    patience: Annotated[int, typer.Option(help="Measurements without a new best that end the run.", min=1)] = 3,
    kl_stop: Annotated[
        float | None, typer.Option(help="Stop where KL, in nats an answer, is above.", show_default="alarm only")
    ] = None,
    length_stop: Annotated[
        float | None, typer.Option(help="Stop where answers are longer, in tokens.", show_default="alarm only")
    ] = None,
    samples_every: Annotated[
        int, typer.Option(help="Iterations between answers written to samples.jsonl; the first has some, too.", min=1)
    ] = 10,
    model_every: Annotated[
        int | None,
        typer.Option(
            help="Iterations between models saved as OUT/iteration-00010 and so on.", show_default="never", min=1
        ),
    ] = None,
    truncate: options.Truncate = False,
    weight_decay: Annotated[float, typer.Option(help="Of matrices; norms are not decayed.", min=0.0)] = 0.1,
    precision: options.Precision = "bf16",
    activation_checkpointing: options.Checkpointing = "none",
    tensor_parallel: options.TensorParallel = 1,
    replicas: options.Replicas = 1,
    compile: options.Compile = False,
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Keep reference and reward models in the host's memory while they do not work."),
    ] = False,
    cache_memory: options.CacheMemory = None,
    device: options.DeviceOrPlanned = None,
    devices: options.Devices = None,
    mfu: options.Mfu = None,
    save_every: options.SaveEvery = None,
    keep: options.Keep = 2,
    log_every: options.LogEvery = 1,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    verify: options.Verify = True,
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a chat model by PPO: 512 answers an iteration, whitened rewards less beta times KL, as the paper did.

    An answer's reward is its helpfulness score, or its safety score where the prompt is tagged safety or
    sigmoid(safety score) < 0.15. With --eval the policy that is kept is the one that answers held-out prompts best, and
    the run ends when there has been no better one for --patience measurements. What the paper leaves open is marked as
    ours below. Killed at any moment, the same command goes on from the newest state, to the same bits.

    Example: llamactl ppo chat prompts.jsonl --helpfulness helpful-rm --safety safe-rm --eval held-out.jsonl -o ppo
    """
    settings = dict(locals())

    from dataclasses import replace

    from llamactl import hardware, ui
    from llamactl.align import answering, choice
    from llamactl.align.judges import Judges
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Prompt
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import trees
    from llamactl.model.heads import RewardModel
    from llamactl.model.llama import Llama
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import placing, planning, schedule

    if not dry_run:
        planning.refuse(device, devices, mfu)
    if batch_size % mini_batch_size:
        problem = f"{mini_batch_size:,} does not divide the {batch_size:,} answers of an iteration"
        raise Fault("--mini-batch-size", problem, "choose a divisor")
    steps = schedule.checked(iterations * (batch_size // mini_batch_size), "--iterations")
    config, _ = Llama.described(model)
    if context and context > config.context:
        raise Fault("--context", f"{context:,} is longer than the model's, {config.context:,}", "make it shorter")
    sampled = replace(config, context=context or config.context)
    if frozen_layers >= config.layers:
        raise Fault("--frozen-layers", f"{frozen_layers} of {config.layers} layers leave none to learn", "freeze fewer")
    tokenizer = Tokenizer.load(model)
    tokenizer.fitting(config.vocab, model)
    shape, _ = Llama.described(reference or model)
    if replace(shape, context=config.context) != config:
        raise Fault(reference or model, f"is of another shape than {model}", "name a --reference that it came from")
    places = {choice.HELPFULNESS: helpfulness, choice.SAFETY: safety, answering.GENERAL: general}
    judging = {name: place for name, place in places.items() if place}
    scored = [*judging.values(), critic or helpfulness]
    for place in scored:
        RewardModel.described(place)  # raises Fault where it is none
    for place in [*scored, reference or model]:
        if Tokenizer.load(place).proto != tokenizer.proto:
            raise Fault(place, f"has another tokenizer than {model}", "train one from a model with the same tokenizer")
    judges = Judges(judging, truncate, allow_tags)
    names = prompts or [jsonl.STDIN]
    jsonl.by_every_process(names)
    beta = (0.005 if config.parameters > 2e10 else 0.01) if kl is None else kl
    inputs: dict[str, list[str | Path]] = {
        "model": [model], **{name: [place] for name, place in judging.items()},
        "critic": [critic] if critic else [], "reference": [reference] if reference else [],
        "prompts": [*names], "eval": [eval] if eval else [],
    }  # fmt: skip
    planned = {"device", "devices", "mfu", "micro_batch", "activation_checkpointing", "tensor_parallel", "replicas"}
    settings = {name: value for name, value in settings.items() if name not in planned | {"compile", "offload"}}
    settings |= {"kl": beta, "context": sampled.context}
    run = Run("ppo", settings, inputs, out, verify and not dry_run, directory=True)
    if not dry_run and run.already_made():
        return
    same = all(one["sha256"] == run.inputs[0]["sha256"] for one in run.inputs if one["as"] == "reference")

    def read(files: list[str]) -> dict[bytes, answering.Question]:
        records = jsonl.read(files, Prompt, refuse=run.refuse)
        found, again = answering.questions(records, tokenizer, sampled.context, judges, run.refuse, allow_tags)
        run.skipped.update({"prompts given before": again} if again else {})
        return found

    held_out, asked = read([str(eval)] if eval else []), read(names)
    if eval and not held_out:
        raise Fault(eval, "holds no prompt to measure by", "look at what was skipped")
    questions = [question for key, question in asked.items() if key not in held_out]
    if not questions:
        raise Fault(", ".join(names), "holds no prompt to learn from", "look at what was skipped, and at --eval")
    if len(questions) < len(asked):
        run.skipped["prompts that are held out"] = len(asked) - len(questions)
    tagged = sum(question.found.record.safety for question in questions)
    if tagged and not safety:
        run.noted["prompts tagged safety, where helpfulness alone decides"] = tagged

    longest = max(len(question.asked.ids) for question in questions)
    length = min(sampled.context, longest + max_new_tokens)
    tenth = max(1, iterations // 10)
    every, save_every = eval_every or tenth, save_every or min(1000, tenth)
    as_judged = truncated == "judged"
    penalty = -1.0 if as_judged else float(truncated)
    micro = min(mini_batch_size, micro_batch or max(1, schedule.MICRO_TOKENS // length))
    layout = planning.Layout(
        mini_batch_size, -(-length // trees.MULTIPLE) * trees.MULTIPLE, micro, precision, activation_checkpointing,
        tensor_parallel, replicas, devices or ui.world_size(),
    )  # fmt: skip
    if not dry_run and (fault := planning.misfit(config, layout)):
        subject = fault.subject.replace("--batch-size", "--mini-batch-size")  # which is what is shared out
        raise Fault(subject, fault.problem.replace("sequences", "answers"), fault.remedy)
    if not dry_run and (fault := planning.undivided(judges.shapes, ui.world_size(), tensor_parallel)):
        raise fault
    rows = [
        ("prompts", f"{len(questions):,}, of which {tagged:,} tagged safety; {len(held_out):,} held out"),
        *run.odd(),
        ("iterations", f"{iterations:,} of {batch_size:,} answers, {steps:,} steps of {mini_batch_size:,}"),
        ("each prompt", f"answered {iterations * batch_size / len(questions):,.1f} times"),
        ("learning rates", f"{lr:g}, of the critic {critic_lr:g}, constant"),
        ("KL", f"beta {beta:g}, to {reference or model}"),
        ("saves state", f"every {save_every:,} iterations, keeps {keep}"),
    ]
    if dry_run:
        shapes = {name: RewardModel.described(place) for name, place in judging.items()}
        valued, _ = RewardModel.described(critic or helpfulness)
        needs = placing.Iteration(config, valued, shapes, batch_size, length, offload, frozen_layers)
        rows += placing.rows(needs, layout, iterations, device, mfu)
    ui.table(f"ppo {model} -> {out}", rows)
    if dry_run:
        return

    import math
    import time
    from collections import Counter
    from collections.abc import Callable, Sequence
    from functools import partial
    from typing import Any

    from torch import Tensor

    from llamactl import cards
    from llamactl.align import alarms
    from llamactl.align import ppo as algorithm
    from llamactl.align.answering import Answer, Answering, Judgement, Question
    from llamactl.artifacts import checkpoint
    from llamactl.artifacts.metrics import Metrics
    from llamactl.model import decoding
    from llamactl.model import device as machine
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.functions import weight_dtype
    from llamactl.model.heads import Critic
    from llamactl.model.kernels import making
    from llamactl.signals import first_ctrl_c
    from llamactl.text import dialogue
    from llamactl.train import actor_critic, optim, parallel, rollouts
    from llamactl.train.actor_critic import ActorCritic
    from llamactl.train.rollouts import Part, Rollout, Rollouts
    from llamactl.train.training import REFUSED, Training
    from llamactl.train.versions import Versions

    target = machine.chosen(device)
    run.effort.use(machine.title(target), machine.gpus(target))
    machine.keep_freed_memory(activation_checkpointing)
    dtype = machine.PRECISIONS[precision]
    with (
        parallel.joined(target, tensor_parallel, replicas) as job,
        job.filling(run, fresh=not resume) as (directory, outputs),
    ):
        arrange = partial(job.arrange, checkpointing=activation_checkpointing, compiled=compile)
        policy = Llama.trainable(model, dtype, target, arrange)
        policy.config = sampled
        policy.freeze(frozen_layers)
        valuer = Critic.trainable(critic or helpfulness, dtype, target, arrange)
        away = offload and job.mesh is None  # a sharded reference stays: little of it is here
        origin = Llama.frozen(reference or model, dtype, target, arrange)
        if frozen_layers and job.mesh is None and not origin.stand_on(policy.stem(frozen_layers)):
            ui.note(f"{reference}: keeps its own first layers: they are other ones than those of {model}")
        if away:
            origin.to("cpu")
        judges.load(target, machine.PRECISIONS[judges.stored], offload, job.part)
        optimizer = optim.AdamW(policy, schedule.Cosine(lr, 0, steps, 1.0), weight_decay)
        of_valuer = optim.AdamW(valuer, schedule.Cosine(critic_lr, 0, steps, 1.0), weight_decay)
        learners = ActorCritic(
            policy, valuer, origin, (optimizer, of_valuer), job, micro_batch or mini_batch_size, temperature,
            algorithm.OF_POLICY, away,
        )  # fmt: skip
        tokens_at_once = None if micro_batch else micro * length  # as planned for; of short answers these are many
        training = Training(policy, optimizer, run, directory, job, keep, {"critic": of_valuer})
        # what else is part of its state: tokens so far, the first iteration's line, alarms given, the best version,
        # and what of the last iteration is held against limits
        cache = job.told(machine.free_memory(target) // placing.FREE)
        training.facts |= {
            "tokens": 0, "cut": 0, "alarms": {}, "critic": (0.0, 1.0), "cache": cache, "unmeasured": False,
            "limited": {},
        }  # fmt: skip
        resumed = training.resume()
        learners.zero, learners.unit = training.facts["critic"]
        if cache_memory:
            training.facts["cache"] = int(cache_memory * hardware.GIB)
        metrics = Metrics(directory, training.step if resumed else -1, iterations, log_every)
        shown = Metrics(directory, training.step, iterations, samples_every, "samples.jsonl")
        sampling = Sampling(1.0, 0, max_new_tokens, seed)
        how = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "seed": seed}
        asking = Answering(judges, tokenizer, temperature, sampling, training.facts["cache"])
        # a run must not begin without what one that goes on from its state has from the start; samples may be drawn in
        # bf16, since the policy looks at all of them before it learns
        made = decoding.kernels(making.ENOUGH) if target.type == "cpu" else None
        computing = sampler.computing_dtype(dtype, target, job.part, sampled if made else None)
        gathered = partial(policy.gathered, weight_dtype(dtype, target), job.part, computing)

        def answered(some: Sequence[Question], stopping: Callable[[], object]) -> list[Answer]:
            """Sampled and judged, on all processes alike."""
            return [Answer(*fields) for fields in job.together(some, partial(asking.answers, gathered, stopping))]

        def saved(where: Path) -> list[dict[str, Any]]:
            """The policy as a model directory, whose manifest has what was done until then."""
            done, tokens = training.step, training.facts["tokens"]
            run.done |= Counter(iterations=done, samples=done * batch_size, tokens=tokens)
            return checkpoint.save(
                where, config.to_hf(machine.STORED[precision]), policy.hf_state(dtype), tokenizer.proto,
                dialogue.tokenizer_config(config.context), cards.of_run(run),
            )  # fmt: skip

        def due(iteration: int) -> bool:
            """Whether what is held out is measured after it."""
            return bool(held_out) and (iteration % every == 0 or iteration == iterations)

        def measured(iteration: int) -> dict[str, float]:
            """What is thought of answers to what is held out, where that is due; the best policy is kept.

            A signal is not kept waiting for it, but at the very end: it is measured when the run goes on.
            """
            if not due(iteration):
                return {}
            some, last = list(held_out.values()), iteration == iterations
            answers = answered(some, job.stopping if not last else lambda: False)
            training.facts["unmeasured"] = not last and not job.agreed(not job.caught)
            if training.facts["unmeasured"]:
                return {}
            seen = Judgement.of(some, answers, list(judging)).seen(answers)
            versions.measured(iteration, seen["reward"])
            return {f"eval_{name}": value for name, value in seen.items()}

        def of_policy(log_probs: Tensor, part: Part) -> Tensor:
            return algorithm.policy_loss(log_probs, part.column("log_probs"), part.column("advantages"), clip)

        def of_critic(values: Tensor, part: Part) -> Tensor:
            return algorithm.value_loss(values, part.column("values"), part.column("returns"), value_clip)

        def enough() -> bool:
            """Whether the best that was measured lies so far back that it is not worth going on."""
            long_ago = training.step - versions.best[0] >= patience * every
            return bool(held_out) and long_ago and not training.facts["unmeasured"]

        def beyond() -> str:
            """The limit that the last iteration was beyond, also if an earlier attempt made it."""
            return alarms.stopped(training.facts["limited"], kl_stop, length_stop)

        def stop_if_told() -> None:
            """Raises Fault where there is one."""
            if stop := beyond():
                training.finish_saving()
                remedy = f"{versions.said()}; without that limit, or with a higher one, the same command goes on"
                raise Fault(directory, f"stopped after iteration {training.step}: {stop}", remedy)

        versions = Versions(training, saved)
        stop_if_told()
        if (not resumed or training.facts["unmeasured"]) and (at_start := measured(training.step)):
            metrics.amend({"step": training.step, **at_start})
        with first_ctrl_c(job.noted), ui.Working("ppo", iterations, "iterations", start=training.step) as bar:
            while training.step < iterations and not enough():
                iteration = training.step + 1
                turns = rollouts.asked(iteration, batch_size, len(questions), seed)
                some = [questions[prompt]._replace(number=number) for prompt, number in turns]
                answers = answered(some, job.stopping)
                training.finish_saving()
                if not job.agreed(not job.caught):
                    training.save()
                    training.stop("iteration")
                if iteration == 1 and not as_judged and not any(answer.stopped for answer in answers):
                    problem = f"all {batch_size:,} answers of the first iteration are cut off, so that no score counts"
                    raise Fault("--max-new-tokens", problem, "allow longer answers, or --truncated judged")
                clock = time.perf_counter()

                judgement = Judgement.of(some, answers, list(judging))
                rewards = algorithm.rewards(judgement.reward, judgement.counted(answers, as_judged), penalty)
                pairs = zip(some, answers, strict=True)
                data = Rollouts([Rollout(asked.asked.ids, said.ids, said.log_probs) for asked, said in pairs], job)
                minis = data.batches(mini_batch_size, f"{seed} mini-batches {iteration}", tokens_at_once)
                learners.look(data, minis)
                rewards = rewards.float().to(target)
                if iteration == 1:
                    learners.calibrate(data, judgement.spread())
                    training.facts["critic"] = learners.shrink(data, rewards)
                data.columns |= algorithm.lessons(rewards, data.columns, data.mask, beta, gamma, gae_lambda)
                looked, clock = time.perf_counter() - clock, time.perf_counter()

                updates = [learners.learn(mini, of_policy, of_critic, training.before_update) for mini in minis]
                refused = sum(update.refused for update in updates)
                line = {
                    "step": iteration, **judgement.seen(answers), **data.seen(),
                    **actor_critic.summary(updates, algorithm.OF_POLICY), "ratio_off": updates[0].policy.beside[-1],
                    "explained_variance": algorithm.explained(data.flat("values"), data.flat("returns")), "lr": lr,
                    "refused": refused, "tokens": sum(data.lengths),
                    "memory_bytes": machine.peak_memory(target), "sample_seconds": asking.seconds[0],
                    "score_seconds": asking.seconds[1] + looked, "update_seconds": time.perf_counter() - clock,
                }  # fmt: skip
                alarms.check(line, same and iteration == 1, precision)
                training.step, training.refused = iteration, training.refused + refused
                run.skipped.update({REFUSED: refused} if refused else {})
                training.facts["tokens"] += sum(data.lengths)
                training.facts["cut"] += sum(answer.cut for answer in answers)
                given = alarms.raised(line, training.facts.setdefault("first", line))
                for name in alarms.due(given, training.facts["alarms"], iteration):
                    ui.warn(f"iteration {iteration}: {given[name]}")
                held = measured(iteration)
                metrics.log({**line, "alarms": sorted(given), **held}, due=due(iteration))
                for question, answer, got in zip(some[:SHOWN], answers, judgement.reward.tolist(), strict=False):
                    own = {"step": iteration, "reward": got}
                    shown.log({**own, **answer.sample(question, out, how), **own}, due=iteration == 1)
                if model_every and iteration % model_every == 0:
                    versions.keep(iteration)
                if held:
                    bar.advance(0, eval=f"{held['eval_reward']:+.3f}")
                bar.advance(1, reward=f"{line['reward']:+.3f}", kl=f"{line['kl']:.2f}", length=f"{line['length']:.0f}")

                limits = ("kl", "length")
                training.facts["limited"] = {name: line[name] for name in limits if math.isfinite(line[name])}
                stopping, last = not job.agreed(not job.caught), iteration == iterations or enough()
                if beyond() or stopping or last or iteration % save_every == 0:
                    training.save()
                stop_if_told()
                if stopping and not last:
                    training.stop("iteration")
        training.finish_saving()
        done = training.step
        kept, best = versions.best
        if done < iterations:
            run.facts["ended"] = f"no better version in {patience} measurements"
        if best == -math.inf:  # nothing is held out, or no answer to it could be judged
            kept = done
        if kept != done:
            ui.warn(
                f"the policy of iteration {kept} is kept: what it answered to held-out prompts was best ({best:+.3f})"
            )
            versions.take_back(policy, kept)
        if cut := training.facts["cut"]:
            run.noted["tokens that a reward model did not see"] = cut
        run.facts |= {
            "job": job.facts(), "save_seconds": round(training.stalled, 3), "kept": kept,
            "epochs": round(done * batch_size / len(questions), 4),
            "held_out_reward": best if math.isfinite(best) else None,
        }  # fmt: skip
        outputs += saved(directory)
        outputs += [metrics.close(), shown.close()]
    versions.clear(model_every)  # now that a run which is killed need not take one back
