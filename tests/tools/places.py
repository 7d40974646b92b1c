"""Where tests find what is not theirs alone."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tests" / "tools"
GOLDEN = ROOT / "tests" / "golden"
