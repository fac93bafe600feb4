"""How large a vocabulary and how long a text can a one-layer language model train on in 4 GiB?

    KERAS_BACKEND=torch python benchmarks/capacity.py

Vocabulary and length double in turns until an arm needs more memory, or until `--doublings` sizes have been tried; then
a larger size may still fit. The baseline is the official recipe in plain PyTorch (official.py). Each size runs in its
own process, after a small one that loads the libraries. The script measures the peak memory of the model, the optimizer
with its moments, and two steps. Linux only.
"""

import numpy as np
from measure import in_own_process, parse_arguments, peak_mebibytes, report
from networks import language_model
from official import ARMS, require_torch

MAX_MEBIBYTES = 4 * 1024
ROWS = 4


def take_two_steps(arm, vocabulary, length):
    network = language_model(np.random.default_rng(0), ROWS, vocabulary, length, width=64, num_layers=1)
    step = ARMS[arm](*network)
    step()
    step()


def find_largest(arm, vocabulary, length, doublings):
    """Returns the last vocabulary and length that fit, and their MiB."""
    largest = None
    for doubling in range(doublings):
        mebibytes = in_own_process(arm=arm, vocabulary=vocabulary, length=length)
        if mebibytes > MAX_MEBIBYTES:
            break
        largest = vocabulary, length, mebibytes
        vocabulary, length = (vocabulary * 2, length) if doubling % 2 == 0 else (vocabulary, length * 2)
    if largest is None:
        raise SystemExit(
            f"Expected the first size to fit in {MAX_MEBIBYTES} MiB. {arm} needs {mebibytes:.0f} MiB: start with a "
            f"smaller --vocabulary or --length."
        )
    return largest


def main():
    args = parse_arguments(__doc__, runs=None, vocabulary=16000, length=128, doublings=9, arm="")
    require_torch()
    if args.arm:
        take_two_steps(args.arm, vocabulary=100, length=8)
        print(peak_mebibytes(lambda: take_two_steps(args.arm, args.vocabulary, args.length)))
        return
    largest = {arm: find_largest(arm, args.vocabulary, args.length, args.doublings) for arm in ARMS}
    official_size = largest["official"][0] * largest["official"][1]
    rows = [
        {"arm": arm, "MiB": mebibytes, "V": v, "T": t, "V x T": v * t, "V x T / official": v * t / official_size}
        for arm, (v, t, mebibytes) in largest.items()
    ]
    report(f"largest vocabulary V and length T of {ROWS} texts in {MAX_MEBIBYTES} MiB", rows, args)


if __name__ == "__main__":
    main()
