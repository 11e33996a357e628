"""From a training run to a checkpoint folder that can be shipped: weights, configuration, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2d2cli import checkpoints
from q2d2cli.errors import UsageError
from q2d2cli.evaluation.plots import to_svg, validation_curve
from q2d2cli.evaluation.tables import dataset_table, scope, score_table, to_markdown
from q2d2cli.files import atomic_output
from q2d2cli.training.config import LOG_NAME, RUN_CONFIG_NAME, TrainConfig, difference, read_config, to_yaml
from q2d2cli.training.corpus import validation_crops
from q2d2cli.training.data import MemoryCorpus
from q2d2cli.training.sharpen import sharpen, unsharpened

if TYPE_CHECKING:
    import torch

    from q2d2cli.models.config import ModelConfig

CURVE_NAME = "validation.svg"
"""The run's validations, shown in the card."""
RECIPE_NAME = "training.yaml"
"""The run's configuration, to go on with."""

PESQ_NOTE = """
PESQ's disturbance was one of the training losses (on other speech), so PESQ flatters this model beside codecs that
were not trained on it: look at the other metrics, too."""


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    steps: int
    minutes: float
    log: tuple[dict[str, Any], ...] = ()
    """The lines of its log."""
    agreement: tuple[float, list[float]] | None = None
    """With a teacher: share of frames, and of each pair, with its codes, at the validation that chose the weights."""
    average: str = ""
    """What the weights are a mean of, in words; empty if they are the run's own."""


def read_cost(run: Path) -> Cost:
    """Steps and minutes of a run, from its log.

    Raises:
        UsageError: if there is no run.
    """
    try:
        entries = [json.loads(line) for line in (run / LOG_NAME).read_text(encoding="utf-8").splitlines()]
        chosen = [entry for entry in entries if entry.get("best") and "agreement" in entry][-1:]
        agreement = (chosen[0]["agreement"], chosen[0]["agreement_pairs"]) if chosen else None
        return Cost(entries[-1]["step"], entries[-1]["minutes"], tuple(entries), agreement)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UsageError(f"{run} holds no training run: name the --out folder of q2d2 train") from error


def export_run(
    run: Path,
    folder: Path,
    *,
    with_discriminators: bool = False,
    average_with: Sequence[str] = (),
    share: float | None = None,
    sharpening: float = 0.0,
    decodes: Sequence[str] = (),
    name: str | None = None,
) -> Cost:
    """Copy a run's best checkpoint and its configuration to `folder`; metrics and card follow with `add_card`.

    Args:
        run: folder of the run.
        folder: what to write, named as the model.
        with_discriminators: also write the discriminators.
        average_with: models (name, folder or Hub id) whose weights are averaged with the run's. Of use for models that
            began with the same weights (Wortsman et al. 2022, Model soups).
        share: of the mean that those have together, in (0, 1); None for as much each as the run.
        sharpening: of the decoder's spectra, as `sharpen` has it; levels are set by the run's validation data.
        decodes: models (name, folder or Hub id) from which the run went on: their files will decode with this one,
            as will those that they decode; their context models are copied.
        name: of the model; None for the one in the run's configuration.

    Raises:
        UsageError: if `run` holds none, `folder` does not bear the model's name, one to average with is another
            architecture, one whose files are to be decoded has other frames or grids, or what is to be sharpened has no
            decoder of its own or no validation data here.
        Q2D2Error: if the weights are damaged or cannot be written.
    """
    cost = read_cost(run)
    try:
        recipe = (run / RUN_CONFIG_NAME).read_bytes()
    except OSError as error:
        raise UsageError(f"{run} holds no {RUN_CONFIG_NAME}: name the --out folder of q2d2 train") from error
    best = checkpoints.find(str(run / "best"))
    config = best.config
    if name is not None:
        recipe = to_yaml(read_config(run / RUN_CONFIG_NAME, [f"model.name={json.dumps(name)}"])).encode()
        config = config.model_copy(update={"name": name})
    if folder.name != config.name:
        raise UsageError(
            f"the model's name is {config.name!r}: export it to a folder of that name, not {folder}, "
            "or give it another with --name"
        )
    forebears = [checkpoints.find(name).whole() for name in decodes]
    for forebear in forebears:
        if (change := difference(read_by(forebear.config), read_by(config))) is not None:
            key, there, here = change
            raise UsageError(f"cannot decode the files of {forebear.config.name}: its {key} is {there}, here {here}")
    judges = checkpoints.load_discriminators(run / "best") if with_discriminators else None
    if with_discriminators and judges is None:
        raise UsageError(f"{run} has no discriminators: leave --with-discriminators out")
    if others := [checkpoints.find(name) for name in average_with]:
        share = len(others) / (len(others) + 1) if share is None else share
        names = " and ".join(f"{other.config.name} `{other.fingerprint().hex()}`" for other in others)
        cost = replace(cost, average=f"{1 - share:.0%} the weights of this run, {share:.0%} those of {names}")
        state, done = average(best, others, share), None
    else:
        # A decoder that was kept as some export had made it is sharpened from where it was before, not twice.
        state = unsharpened(best) if sharpening else checkpoints.load(best).state_dict()
        done = best.sharpened
    # A mean of students of one lender has its decoder, too.
    lender = best.lender if all(other.lender == best.lender for other in others) else None
    if sharpening:
        if lender is not None:
            raise UsageError(f"--sharpen changes a decoder, and {config.name} has {lender.model}'s: leave it out")
        state, done = sharpened(best, state, sharpening, read_config(run / RUN_CONFIG_NAME))
    known = {name: mark for forebear in forebears for name, mark in (*forebear.decodes.items(), own_mark(forebear))}
    own = state if lender is None else own_part(best, state)
    checkpoints.save(folder, config, own, lender=lender, decodes=known, sharpened=done)
    for forebear in forebears:
        for path in sorted(forebear.folder.glob(checkpoints.CONTEXTS)):
            own_context = path.name == checkpoints.CONTEXT_NAME
            copy = folder / (f"{path.stem}-{forebear.config.name}{path.suffix}" if own_context else path.name)
            with atomic_output(copy) as file:
                file.write(path.read_bytes())
    with atomic_output(folder / RECIPE_NAME) as file:
        file.write(recipe)
    if judges is not None:
        checkpoints.save_discriminators(folder, judges)
    return cost


def read_by(config: ModelConfig) -> dict[str, Any]:
    """What two models have in common if one decodes the other's files."""
    return config.model_dump(mode="json", include={"sample_rate", "hop", "quantizer"})


def own_mark(checkpoint: checkpoints.Checkpoint) -> tuple[str, bytes]:
    """Name and fingerprint of a model."""
    return checkpoint.config.name, checkpoint.fingerprint()


def own_part(student: checkpoints.Checkpoint, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a student's weights, those that its lender does not have; all if the lender is no model that is here."""
    try:
        student.whole()
    except UsageError:
        return state
    return {name: tensor for name, tensor in state.items() if name.startswith(checkpoints.ENCODING)}


def average(
    first: checkpoints.Checkpoint, others: Sequence[checkpoints.Checkpoint], share: float
) -> dict[str, torch.Tensor]:
    """A mean of models' weights, of which `others` have `share`; what does not count in fractions is the first one's.

    Raises:
        UsageError: if they differ in architecture.
    """
    mine = first.config.model_dump(mode="json")
    for other in others:
        if (change := difference({**other.config.model_dump(mode="json"), "name": mine["name"]}, mine)) is not None:
            key, there, here = change
            raise UsageError(
                f"cannot average with {other.folder}: its {key} is {there}, the run's {here}; "
                "name a model of the same architecture"
            )
    state = unsharpened(first)
    counted = [tensor for tensor in state.values() if tensor.is_floating_point()]
    for tensor in counted:
        tensor *= 1 - share
    for other in others:
        theirs = [tensor for tensor in unsharpened(other).values() if tensor.is_floating_point()]
        for tensor, more in zip(counted, theirs, strict=True):
            tensor += share / len(others) * more
    return state


def sharpened(
    checkpoint: checkpoints.Checkpoint, state: dict[str, torch.Tensor], amount: float, config: TrainConfig
) -> tuple[dict[str, torch.Tensor], checkpoints.Sharpened]:
    """The weights `state` with a sharper decoder, as loud as before on the run's validation data; what was done."""
    model = checkpoints.load(checkpoint)
    model.load_state_dict(state)
    corpus = MemoryCorpus(config.data.valid, model.config.sample_rate, model.decoder.head.window.device)
    done = sharpen(model, amount, validation_crops(corpus, config.data))
    return model.state_dict(), done


def add_card(folder: Path, *, cost: Cost, measured: dict[str, Any], command: str, notes: str) -> None:
    """Write metrics into `config.json`, the model card `README.md` and its picture of the run.

    Args:
        folder: the checkpoint.
        cost: what training took.
        measured: result of `evaluation.summary.sum_up`, the model its first codec.
        command: how to measure it again.
        notes: Markdown on data, licences and limits, appended to the card.
    """
    checkpoint = checkpoints.open_checkpoint(folder)
    own = measured["codecs"][0]
    scores = own["datasets"]["all"]
    metrics = {name: mean for name in measured["metrics"] if (mean := scores[name]["mean"]) is not None}
    _, context = marks(own["identity"])
    coded_rate = own["bit_rate"] if context else None
    checkpoint = replace(checkpoint, metrics=metrics, coded_rate=coded_rate)
    checkpoints.write_config(checkpoint)
    card = model_card(folder, checkpoint, cost=cost, measured=measured, command=command, notes=notes)
    with atomic_output(folder / checkpoints.CARD_NAME) as file:
        file.write(card.encode())
    if (figure := validation_curve(cost.log)) is not None:
        with atomic_output(folder / CURVE_NAME) as file:
            file.write(to_svg(figure, standalone=True).encode())


def model_card(
    folder: Path,
    checkpoint: checkpoints.Checkpoint,
    *,
    cost: Cost,
    measured: dict[str, Any],
    command: str,
    notes: str,
) -> str:
    """The card's text."""
    config, size = checkpoint.config, checkpoint.weights.stat().st_size
    spec = config.quantizer.spec()
    on_pesq = read_config(folder / RECIPE_NAME).loss.pesq > 0
    own = measured["codecs"][0]
    columns = (spec.sizes, own["pair_entropy"], own["pair_entropy_max"], own["pair_utilization"])
    pairs = "\n".join(
        f"| {number} | {points} | {entropy:.2f} of {most:.2f} bits ({100 * entropy / most:.0f}%) | {100 * used:.1f}% |"
        for number, (points, entropy, most, used) in enumerate(zip(*columns, strict=True))
    )
    fingerprint, context = marks(own["identity"])
    more = average_row(cost) + sharpened_row(checkpoint) + agreement_row(cost) + lender_row(checkpoint)
    more += decodes_row(checkpoint)
    coded = f", context model `{context}`" if context else ""
    rates = f"{config.bit_rate / 1000:.2f} kbit/s payload"
    if checkpoint.coded_rate is not None:
        rates += f", {checkpoint.coded_rate / 1000:.2f} entropy coded (mean of the files below)"
    return f"""# {config.name}

| | |
|---|---|
| bit rate | {rates} |
| tokens | {config.frame_rate:.1f} per second, codebook of {spec.codebook_size} |
| quantizer | {spec.kind} grids, levels {",".join(map(str, spec.levels))} |
| audio | {config.sample_rate} Hz inside, one frame per {config.hop} samples; any rate in and out |
| weights | {size / 1e6:.1f} MB, 16-bit safetensors, fingerprint `{fingerprint}`{coded} |
| training | {cost.steps} steps, {cost.minutes / 60:.1f} hours |{more}

## Measured quality

On speakers never trained on: {scope(measured)}.
Mean and 95% interval over files, metrics at 16 kHz, PESQ wide-band.{PESQ_NOTE if on_pesq else ""}

{to_markdown(dataset_table(measured, own))}

The same files through other codecs:

{to_markdown(score_table(measured, brief=True))}

| pair | points | entropy | points used |
|---|---|---|---|
{pairs}

Measured with

    {command}

![Validation during the run, on speakers of their own]({CURVE_NAME})

Go on training from here, on this data or your own, with

    q2d2 train --config {folder}/{RECIPE_NAME} --out runs/{config.name} --init {folder}

{notes.strip()}
"""


def marks(identity: str) -> tuple[str, str]:
    """Fingerprints of a model's weights and of its context model, empty without one, in a subject's identity."""
    weights, _, context = identity.removeprefix("q2d2:").partition(":decoder ")[0].partition(":context ")
    return weights, context


def average_row(cost: Cost) -> str:
    """One more row of the card's first table, if weights were averaged."""
    return f"\n| average | {cost.average} |" if cost.average else ""


def sharpened_row(checkpoint: checkpoints.Checkpoint) -> str:
    """One more row of the card's first table, if the decoder was sharpened."""
    if (done := checkpoint.sharpened) is None:
        return ""
    return f"\n| sharpened | by {done.amount:g} (`q2d2 export --sharpen`) |"


def agreement_row(cost: Cost) -> str:
    """One more row of the card's first table, if there was a teacher."""
    if cost.agreement is None:
        return ""
    share, pairs = cost.agreement
    each = ", ".join(f"{100 * pair:.1f}%" for pair in pairs)
    return f"\n| agreement | {100 * share:.1f}% of tokens equal the teacher's; by pair {each} (validation data) |"


def lender_row(checkpoint: checkpoints.Checkpoint) -> str:
    """One more row of the card's first table, if the decoder is another model's."""
    if checkpoint.lender is None:
        return ""
    name, weights = checkpoint.lender.model, checkpoint.lender.fingerprint.hex()
    return f"\n| decoder | that of {name}, weights `{weights}`: files name these, and that model decodes them |"


def decodes_row(checkpoint: checkpoints.Checkpoint) -> str:
    """One more row of the card's first table, if it decodes the files of earlier weights."""
    known = ", ".join(f"{name} (weights `{mark.hex()}`)" for name, mark in checkpoint.decodes.items())
    return f"\n| decodes | its own files, and those of {known} |" if known else ""
