"""What the driver is told when a kernel is started: by launch.py and cuda.core as they are, down to a pretended one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
#include <stdio.h>
#include <string.h>

typedef struct { int id; unsigned unused, x, y, z, rest[13]; } attribute;
typedef struct { unsigned grid[3], block[3], shared; void *stream; attribute *attributes; unsigned number; } config;

static int nothing(void) { return 0; }
static int version(int *found) { *found = 13000; return 0; }
static int device(int *found) { *found = 0; return 0; }
static int launch(const config *c, void *kernel, void **values, void **extra) {
    printf("launch of (%u, %u, %u), %u bytes", c->grid[0], c->grid[1], c->grid[2], c->shared);
    for (unsigned i = 0; i < c->number; i++)
        printf(", attribute %d (%u, %u, %u)", c->attributes[i].id, c->attributes[i].x, c->attributes[i].y,
               c->attributes[i].z);
    puts("");
    return fflush(stdout);
}
static int set(int what, int value, void *kernel, int device) {
    printf("attribute %d of kernel %p is %d\\n", what, kernel, value);
    return fflush(stdout);
}
int cuGetProcAddress_v2(const char *name, void **function, int version_, unsigned long long flags, int *status) {
    *function = !strcmp(name, "cuDriverGetVersion") ? (void *)version
        : !strcmp(name, "cuCtxGetDevice") ? (void *)device
        : !strcmp(name, "cuLaunchKernelEx") ? (void *)launch
        : !strcmp(name, "cuKernelSetAttribute") ? (void *)set
        : !strncmp(name, "cuGetProcAddress", 16) ? (void *)cuGetProcAddress_v2 : (void *)nothing;
    if (status) *status = 0;
    return 0;
}
"""
PROGRAM = """
from types import SimpleNamespace

import fake_cupy

fake_cupy.install()
from cuda.core import Kernel
from nbnorm._cuda import launch

loaded = SimpleNamespace(kernel=Kernel.from_handle(1))
compiled = SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: loaded))
launch._allow_room(compiled)
start = launch._starter(compiled, nested=False)
start(77, (64, 1), 256, 100352, 5, 2.0)
start(77, (64, 3), 256, 0, 5, 2.0)
launch._starter(compiled, nested=True)(77, (64, 5), 256, 0, (5, 0), 2.0)  # cuda.core refuses a tuple
"""
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_


def test_geometry_and_shared_memory_reach_the_driver(tmp_path):
    pytest.importorskip("cuda.core", reason="the launch path of numba-cuda[cu13]")
    if shutil.which("cc") is None:
        pytest.skip("NO C COMPILER for the pretended driver")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=DRIVER, text=True, check=True)
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (tests.parent, tests / "cuda")))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [
        f"attribute {MAX_DYNAMIC_SHARED_SIZE_BYTES} of kernel 0x1 is 111616",
        "launch of (64, 1, 1), 100352 bytes",
        "launch of (64, 3, 1), 0 bytes",
        "launch of (64, 5, 1), 0 bytes",
    ]
