"""What decides the claims on block-diagonal Hessian-free, fixed before the runs; a function of the published numbers.

Three paired seeds are enough for a verdict here: Student's interval of three pairs is 4.3 standard errors to each side,
so that few runs cost power and not truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from examples.experiment import MOST, Criterion
from examples.learning.judgements import (
    SIMILAR,
    at_end,
    better_at_equal_updates,
    better_throughout,
    degrades_less,
    differ,
    fewer_increases,
    higher,
    iterations,
    late_rise,
    lower,
    order_of_magnitude,
    seconds_per_update,
    similar_updates,
    slowest,
    spread,
    together,
)
from examples.learning.trainers import (
    Setting,
    Task,
    adam,
    block_diagonal,
    hessian_free,
    longer_steps,
    no_momentum,
    random_blocks,
)

ENOUGH = 3
#: "Ends at the error of" another: at most this many times it.
REACHED = 1.1
#: "Substantially": at most this part of the variance.
SUBSTANTIALLY = 0.5
INTERVAL = "the 95 % interval over paired seeds"
MEAN = f"{INTERVAL} of the mean over the course"
THROUGHOUT = f"and the mean over seeds is better at {MOST:.0%} of the records or more".replace("%", " %")


def throughout(claim: str, task: Task, first: str, second: str) -> list[Criterion]:
    """Better over the whole course, on training and test data."""
    kinds = {"train_loss": "training loss", "test_loss": "test loss"}
    found = [
        Criterion(
            claim,
            f"{first}: a lower {words} than {second} over the whole course",
            f"{MEAN} of the log ratio lies below zero, {THROUGHOUT}",
            better_throughout(first, second, key),
        )
        for key, words in kinds.items()
    ]
    if task.classifies:
        found.append(
            Criterion(
                claim,
                f"{first}: a higher test accuracy than {second} over the whole course",
                f"{MEAN} of the difference lies above zero, {THROUGHOUT}",
                better_throughout(first, second, "test_accuracy"),
            )
        )
    return found


def criteria(task: Task, setting: Setting) -> list[Criterion]:
    """All that decides the claims on a task, in the order of the paper."""
    small, big = adam(setting.small_batch), adam(setting.batch)
    middle, largest = setting.curvatures[1], setting.curvatures[-1]
    best, blocks = block_diagonal(largest), block_diagonal(middle)
    found = [
        Criterion(
            "updates",
            f"{best} needs an order of magnitude fewer updates than {small}",
            f"{INTERVAL} of the ratio of updates to the lowest training loss that both reach lies above 10^(1/2)",
            order_of_magnitude(small, best),
        ),
        *(
            Criterion(
                "updates",
                f"{best} ends at the {words} of {small}, which had {setting.times} times the updates, or below",
                f"{INTERVAL} of the ratio at the end (the last tenth of the records) lies below {REACHED}",
                lower(best, small, at_end(key), factor=REACHED),
            )
            for key, words in (("train_loss", "training loss"), ("test_loss", "test loss"))
        ),
    ]
    for size in setting.curvatures:
        found += throughout("whole course", task, block_diagonal(size), hessian_free(size))
    found += [
        *(
            Criterion(
                "curvature batch",
                f"block-diagonal degrades less from {largest} to {setting.curvatures[0]} examples: {words}",
                f"{INTERVAL} of the difference of mean log ratios over the course, smallest batch to largest, "
                "block-diagonal - whole, lies below zero",
                degrades_less(key),
            )
            for key, words in (("train_loss", "training loss"), ("test_loss", "test loss"))
        ),
        Criterion(
            "Adam",
            f"Adam needs a similar number of updates at batches of {setting.small_batch} and {setting.batch}",
            f"{INTERVAL} of the ratio of updates to the lowest training loss that both reach lies within 1/2 and 2",
            similar_updates(small, big, (setting.small_batch, setting.batch)),
        ),
        Criterion(
            "Adam",
            "Adam's final test loss depends on the batch size",
            f"{INTERVAL} of the log ratio at the end lies on one side of zero",
            differ(big, small, at_end("test_loss")),
        ),
        Criterion(
            "iterations",
            f"fewer CG iterations per block than of the whole, to a relative residual of {setting.solve_rtol:g}",
            f"{INTERVAL} of the mean over checkpoints of the log ratio, slowest block to whole, lies below zero",
            iterations(blocks, slowest),
        ),
        *(
            Criterion(
                "time",
                f"an update of {block_diagonal(size)} takes a time comparable with {hessian_free(size)}'s",
                f"{INTERVAL} of the ratio of CPU time lies below {SIMILAR:g}",
                lower(block_diagonal(size), hessian_free(size), seconds_per_update, factor=SIMILAR),
            )
            for size in setting.curvatures
        ),
        *throughout("momentum", task, blocks, no_momentum(middle)),
        *throughout("step length", task, blocks, longer_steps(middle)),
    ]
    for size in setting.curvatures:
        found += throughout("control", task, block_diagonal(size), random_blocks(size))
    found += [
        *(
            Criterion(
                "late rise",
                f"{arm}: the test loss rises late",
                f"{INTERVAL} of the log ratio of the last eighth of the course to the eighth before lies above zero",
                late_rise(arm),
            )
            for arm in (small, big, hessian_free(largest), best)
        ),
    ]
    return found + SPECIAL.get(task.name, _nothing)(setting)


def _nothing(setting: Setting) -> list[Criterion]:
    return []


def side_by_side(setting: Setting) -> Criterion:
    """Iterations of blocks that are solved side by side; of the autoencoder these were not recorded."""
    return Criterion(
        "iterations",
        f"fewer CG iterations of all blocks side by side, to a joint residual of {setting.solve_rtol:g}",
        f"{INTERVAL} of the mean over checkpoints of the log ratio, blocks to whole, lies below zero",
        iterations(block_diagonal(setting.curvatures[1]), together),
    )


def beats_adam(setting: Setting) -> list[Criterion]:
    """Of the LSTM: better than Adam at any batch size."""
    best = block_diagonal(setting.curvatures[-1])
    found = [side_by_side(setting)]
    for other in (adam(setting.small_batch), adam(setting.batch)):
        found += [
            Criterion(
                "beats Adam",
                f"{best} has a lower training loss than {other} after as many updates",
                f"{MEAN} of the log ratio lies below zero",
                better_at_equal_updates(best, other, "train_loss"),
            ),
            Criterion(
                "beats Adam",
                f"{best} has a higher test accuracy than {other} after as many updates",
                f"{MEAN} of the difference lies above zero",
                better_at_equal_updates(best, other, "test_accuracy"),
            ),
            Criterion(
                "beats Adam",
                f"{best} ends at a lower training loss than {other}, which had {setting.times} times the updates",
                f"{INTERVAL} of the ratio at the end lies below one",
                lower(best, other, at_end("train_loss")),
            ),
            Criterion(
                "beats Adam",
                f"{best} ends at a higher test accuracy than {other}, which had {setting.times} times the updates",
                f"{INTERVAL} of the difference at the end lies above zero",
                higher(best, other, at_end("test_accuracy")),
            ),
        ]
    return found


def more_stable(setting: Setting) -> list[Criterion]:
    """Of the ResNet: the training loss falls more steadily; and averaged parameters are compared."""
    middle = setting.curvatures[1]
    first, others = block_diagonal(middle), (hessian_free(middle), adam(setting.small_batch), adam(setting.batch))
    return [side_by_side(setting)] + [
        each
        for second in others
        for each in (
            Criterion(
                "stable",
                f"{first}: the training loss rises less often than with {second}",
                f"{INTERVAL} of the difference of numbers of rises between records lies below zero",
                fewer_increases(first, second),
            ),
            Criterion(
                "stable",
                f"{first}: successive changes of the training loss vary substantially less than with {second}",
                f"{INTERVAL} of the ratio of the variances of their logarithms lies below {SUBSTANTIALLY}",
                lower(first, second, spread, factor=SUBSTANTIALLY),
            ),
            Criterion(
                "averaged",
                f"{first}: a higher test accuracy of averaged parameters than {second}'s",
                f"{INTERVAL} of the difference at the end lies above zero",
                higher(first, second, at_end("averaged_accuracy")),
            ),
        )
    ]


SPECIAL: dict[str, Callable[[Setting], Sequence[Criterion]]] = {
    "lstm_rows": beats_adam,
    "lstm_pixels": beats_adam,
    "resnet": more_stable,
}
