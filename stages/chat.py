"""Talk to a model in the paper's chat format (contract, section 3), in a terminal or over a pipe.

In: a message or a ``/command`` a line. Out: answers as text on stdout, each followed by a blank line.
"""

from typing import Annotated

import typer

from llamactl import options


def chat(
    model: options.Model,
    system: Annotated[str, typer.Option(help="The system message.", show_default="none")] = "",
    temperature: options.Temperature = 0.6,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    allow_tags: options.AllowTags = False,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Talk to a model: each line is a message, or a /command (/help lists them); answers stream.

    Where the context is full, the model no longer sees the oldest pairs; /save FILE writes all of them, as a Dialogue.
    An answer is what `generate` gives for the same messages, seed and flags: the same conversation, the same answers.

    Example: llamactl chat chat-model --system "Answer in one sentence."
    """
    import sys

    from llamactl import ui
    from llamactl.artifacts import jsonl, manifest
    from llamactl.errors import Fault
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama
    from llamactl.text import conversation, dialogue
    from llamactl.text.tokenizer import Tokenizer

    out, terminal = jsonl.stdout(), sys.stdin is not None and sys.stdin.isatty()
    config, stored = Llama.described(model)
    tokenizer, target = Tokenizer.load(model), devices.chosen(device)
    tokenizer.fitting(config.vocab, model)
    talk = conversation.Conversation(tokenizer, config.context, max_new_tokens, allow_tags)
    talk.begin(system, "--system")
    manifest.described("model", str(model))  # its bytes are held against its run.json
    network = sampler.load(model, target, devices.PRECISIONS[precision or stored], 1)
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)

    def show(text: str) -> None:
        with jsonl.reader_may_leave():
            out.write((ui.harmless(text) if sys.stdout.isatty() else text).encode())
            out.flush()

    if problem := dialogue.stranger(model):
        ui.warn(f"{model}: {problem}")
    if terminal:
        ui.note(ui.dim(f"{model}, a context of {config.context:,} tokens; /help lists the commands, Ctrl-D ends"))
    for where, line in conversation.typed("> ") if terminal else conversation.piped():
        try:
            if line.rstrip() == "/quit":
                break
            if line.startswith("/"):
                ui.warn(ui.dim(talk.obey(line)))
                continue
            seen = talk.say(line)
        except Fault as fault:
            if not terminal:
                raise Fault(f"{where}: {fault.subject}", fault.problem, fault.remedy) from None
            ui.warn(ui.dim(str(fault)))
            continue
        if seen.left_out:
            earlier = f"{seen.left_out:,} of the {talk.pairs - 1:,} earlier pairs"
            ui.warn(ui.dim(f"the context is full: the model does not see the oldest {earlier}"))
        try:
            for piece in talk.hear(sampler.decode(network, [sampler.Request(seen.ids, (temperature,))], sampling)):
                show(piece)
        except KeyboardInterrupt:
            if not terminal:
                raise
            talk.stop()
        show("\n\n")
        if talk.ending:
            ui.note(ui.dim(talk.ending))
