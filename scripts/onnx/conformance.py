"""ONNX's own test cases, as the PyPI package `onnx` brings them, through the reader of this project.

    python conformance.py

Compares every output with the stored one and every gradient with differences; an operator that is missing is named.
"""

import subprocess
import sys
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(onnx.__file__).parent / "backend/test/data"

command = ["cargo", "run", "--release", "-q", "-p", "onnx_models", "--example", "conformance"]
folders = [str(CASES / folder) for folder in ("pytorch-operator", "pytorch-converted", "simple")]
sys.exit(subprocess.run([*command, "--", *folders], cwd=ROOT).returncode)
