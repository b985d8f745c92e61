"""Tests mean the same on every machine: a GPU is seen only by those that need one, `make test-gpu`."""

import os
import sys

if "gpu" not in sys.argv and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

pytest_plugins = ["t2iedit.testing"]
