"""tests/exchange: training steps beside PyTorch, Keras, Flax and ONNX, and the ways there and back.

Each file in a process of its own, since these libraries start threads, mind forks, and choose a backend when they are
imported. NBNORM_REQUIRE_EXCHANGE=1 makes a failure of what is skipped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = {
    "pytorch": ("test_pytorch", ["torch"], {}),
    "keras with NumPy": ("test_keras", ["keras"], {"KERAS_BACKEND": "numpy"}),
    "keras with JAX": ("test_keras", ["keras", "jax"], {"KERAS_BACKEND": "jax"}),
    "keras with PyTorch": ("test_keras", ["keras", "torch"], {"KERAS_BACKEND": "torch"}),
    "the example": ("test_keras_example", ["keras", "sklearn"], {"KERAS_BACKEND": "numpy"}),
    "flax": ("test_flax", ["flax"], {}),
    "onnx": ("test_onnx", ["onnx"], {}),
    "onnxruntime": ("test_onnx", ["onnx", "onnxruntime"], {"EVALUATOR": "onnxruntime"}),
    "pytorch's export": ("test_pytorch_export", ["torch", "onnx"], {}),
}


@pytest.mark.parametrize(("file", "packages", "settings"), CASES.values(), ids=CASES)
def test_beside_another_library(file, packages, settings):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("NBNORM_REQUIRE_EXCHANGE") != "1":
        pytest.skip(f'NO TESTS BESIDE {", ".join(missing)}: not installed; pip install -e ".[exchange-test]"')
    environment = {**os.environ, "NBNORM_OTHER_LIBRARIES": "1", "JAX_PLATFORMS": "cpu", **settings}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--exhaustive"]
    command += ["-W", "ignore::DeprecationWarning", str(HERE / "exchange" / f"{file}.py")]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=600)
    print(done.stdout[-4000:], done.stderr[-4000:])
    assert done.returncode == 0
    assert "skipped" not in done.stdout
