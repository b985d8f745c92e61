"""`python -m t2iedit`."""

import sys

from t2iedit.cli import main

sys.exit(main())
