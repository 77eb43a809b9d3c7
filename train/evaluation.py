"""What is measured during a run besides its steps.

That is the losses of the validation data, the same of fresh answers to their prompts where a run has rollouts, and the
run file's figures.
"""

import math
from collections.abc import Callable, Sequence

import jax

from train.batch import Batch, HostBatch
from train.config import TrainConfig
from train.inputs import Inputs
from train.objectives.rollouts import OF_ROLLOUTS
from train.setup import TrainingSetup
from train.state import TrainState

Figures = dict[str, float | int]
Evaluate = Callable[[TrainState], Figures]


def make_evaluation(
    config: TrainConfig, setup: TrainingSetup, inputs: Inputs, put: Callable[[HostBatch], Batch]
) -> Evaluate | None:
    """Returns the evaluation of a state, or None if the settings ask for none.

    Args:
      put: places a batch on the mesh.
    """
    own, validation = config.options.evaluate, inputs.validation
    if own is None and validation is None:
        return None

    def evaluate(state: TrainState) -> Figures:
        figures = {} if validation is None else validate(setup, state, validation.batches, put)
        if inputs.held_out is not None and inputs.held_out.prompts:
            answered = inputs.held_out.sample(state)
            taught = validate(setup, state, answered.batches, put)
            figures |= answered.figures | {f"{OF_ROLLOUTS}{name}": value for name, value in taught.items()}
        more = {} if own is None else dict(own(setup.model(state), inputs.tokenizer))
        if twice := sorted(figures.keys() & more.keys()):
            raise ValueError(
                f"evaluate of the run file returned {twice[0]!r}, which is a figure of the validation data too; "
                "give it another name."
            )
        return figures | more

    return evaluate


def validate(
    setup: TrainingSetup, state: TrainState, batches: Sequence[HostBatch], put: Callable[[HostBatch], Batch]
) -> Figures:
    """Returns every term of the objective over all batches, and ``tokens``, the count of the main term.

    A term is the sum over its targets divided by their number. Sums of batches are added on the host in float64.
    """
    results = []
    for batch in batches:
        results.append(setup.sums(state.params, setup.frozen, put(batch)))
        # One batch waits while another is computed; more would only take memory of the device.
        jax.block_until_ready(results[-2:-1])
    sums, counts = zip(*jax.device_get(results), strict=True)

    def total(values: Sequence[dict[str, float]], name: str) -> float:
        return math.fsum(float(each[name]) for each in values)

    figures: Figures = {name: total(sums, name) / max(total(counts, name), 1.0) for name in sums[0]}
    return figures | {"tokens": int(total(counts, setup.terms[0]))}
