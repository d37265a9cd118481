"""Lets the tests and the model itself import the model, which is no part of the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
