"""A grid of requests as a file, and a batch that may be killed and started again: python examples/many.py [MODEL]."""

import json
import subprocess
import sys
from pathlib import Path

MODEL = sys.argv[1] if len(sys.argv) > 1 else "shapes"

with Path("requests.jsonl").open("w") as file:
    for alpha in (0.5, 1.0):
        edit = {"name": "decor", "options": {"undesired": ["a blue square"], "alpha": alpha}}
        request = {"prompt": "a red circle and a blue square", "edits": [edit], "seeds": "0..1"}
        file.write(json.dumps(request) + "\n")
command = [sys.executable, "-m", "t2iedit", "batch", "requests.jsonl", "-m", MODEL, "-o", "many"]
raise SystemExit(subprocess.run(command).returncode)
