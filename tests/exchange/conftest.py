"""These tests import other libraries, which start threads and mind forks: tests/test_exchange_libraries.py runs each
file in a process of its own, and says what is missing. Nowhere else are they collected.
"""

import os

import pytest

if os.environ.get("NBNORM_OTHER_LIBRARIES") != "1":
    collect_ignore_glob = ["test_*.py"]

pytest.register_assert_rewrite("beside")
