"""How large a vocabulary and how long a text can a language model of one layer train on, in 4 GiB?

    KERAS_BACKEND=torch python benchmarks/capacity.py

Vocabulary and length double in turns, until the training steps of an arm take more or `--doublings` sizes were tried:
then at least the last of them fits. The rival is the official recipe in plain PyTorch (official.py). Each size runs in
a process of its own, after a small one that loads the libraries; what counts is the most memory that model, optimizer
and two steps take beside them: the moments of the optimizer are there from the first step on. Linux only.
"""

import numpy as np
from measure import in_own_process, parse_arguments, peak_mebibytes, report
from networks import language_model
from official import ARMS, require_torch

MOST = 4 * 1024  # MiB
ROWS = 4


def take_two_steps(arm, vocabulary, length):
    network = language_model(np.random.default_rng(0), ROWS, vocabulary, length, width=64, num_layers=1)
    step = ARMS[arm](*network)
    step()
    step()


def largest(arm, vocabulary, length, doublings):
    """The last vocabulary and length that fit, and their MiB."""
    fits = None
    for doubling in range(doublings):
        mebibytes = in_own_process(arm=arm, vocabulary=vocabulary, length=length)
        if mebibytes > MOST:
            break
        fits = vocabulary, length, mebibytes
        vocabulary, length = (vocabulary * 2, length) if doubling % 2 == 0 else (vocabulary, length * 2)
    if fits is None:
        raise SystemExit(f"Nothing fits: {arm} takes {mebibytes:.0f} MiB at the first size.")
    return fits


def main():
    args = parse_arguments(__doc__, vocabulary=16000, length=128, doublings=9, arm="")
    require_torch()
    if args.arm:
        take_two_steps(args.arm, vocabulary=100, length=8)
        print(peak_mebibytes(lambda: take_two_steps(args.arm, args.vocabulary, args.length)))
        return
    found = {arm: largest(arm, args.vocabulary, args.length, args.doublings) for arm in ARMS}
    of_rival = found["official"][0] * found["official"][1]
    rows = [
        {"arm": arm, "MiB": mebibytes, "V": v, "T": t, "V x T": v * t, "V x T / official": v * t / of_rival}
        for arm, (v, t, mebibytes) in found.items()
    ]
    report(f"largest vocabulary V and length T of {ROWS} texts in {MOST} MiB", rows, args)


if __name__ == "__main__":
    main()
