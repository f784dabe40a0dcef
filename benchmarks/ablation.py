"""slimrank's own recipe, a switch at a time: what each of its pieces and options brings on a model.

    python benchmarks/ablation.py MODEL --calibration train.txt --text valid.txt --device cuda --out FILE
    python benchmarks/ablation.py MODEL --calibration train.txt --text valid.txt --out FILE --variants mix,damping

--variants takes names or their beginnings. Choose by texts that nothing is judged on. --list prints the variants.
"""

import variants
from variants import Variants

OWN = "slimrank"


def anchored(option: str) -> list[str]:
    """The recipe with one option of the anchored targets changed."""
    return [f"refine.anchored.{option}"]


def distilled(option: str) -> list[str]:
    """The refined recipe's distillation with one option changed."""
    return [f"refine.distill.{option}"]


VARIANTS: Variants = {
    "svd-llm": ("svd-llm", []),
    "slimrank": (OWN, []),
    "G of the text's tokens": (OWN, ["metric.labels=text"]),
    "G not shrunk": (OWN, ["metric.shrink=0"]),
    "G its mean diagonal": (OWN, ["metric.shrink=1"]),
    "G of 8192 tokens": (OWN, ["metric.tokens=8192"]),
    "G of all tokens": (OWN, ["metric.tokens=null"]),
    "input metric, uniform ranks": (OWN, ["metric=whitened", "allocate=uniform", "form=pivoted"]),
    "uniform ranks": (OWN, ["allocate=uniform", "form=pivoted"]),
    "nothing joined": (OWN, ["form=pivoted"]),
    "joined wherever it gains": (OWN, ["allocate.gain=0"]),
    "prices measured": (OWN, ["allocate.calibrate=true"]),
    "no pivots": (OWN, ["form=low_rank"]),
    "no anchored targets": (OWN, ["refine=[temperature]"]),
    "no temperature": (OWN, ["refine=[{name: anchored, windows: 64}]"]),
    "no refiner": (OWN, ["refine=[]"]),
    "targets not shifted": (OWN, anchored("mix=0")),
    "targets without the residual stream": (OWN, anchored("residual=false")),
    **{f"mix {mix}": (OWN, anchored(f"mix={mix}")) for mix in (0.25, 0.75, 1.0)},
    **{f"damping {damping}": (OWN, anchored(f"damping={damping}")) for damping in (1e-6, 0.01, 0.3, 1.0)},
    **{f"shrink {share}": (OWN, anchored(f"shrink={share}")) for share in (0.0, 0.01, 0.1, 0.2)},
    "targets of half the windows": (OWN, anchored("windows=32")),
    "refined": ("slimrank-refined", []),
    "refined, norms and biases slower": ("slimrank-refined", distilled("vector_lr=0.0002")),
    "refined, states not compared": ("slimrank-refined", distilled("states=0")),
    "refined, 2048 tokens a step": ("slimrank-refined", distilled("batch=2048")),
    **{f"refined, lr {lr}": ("slimrank-refined", distilled(f"lr={lr}")) for lr in (3e-5, 1e-4, 3e-4)},
}


def main() -> None:
    """Measure what is missing and print the tables."""
    variants.main(VARIANTS, __doc__, "ablation")


if __name__ == "__main__":
    main()
