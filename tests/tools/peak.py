"""How much memory a piece of Python takes, beyond what it takes to get ready."""

import subprocess
import sys

# Pages that were touched before count as they are, so the peak is that of the work alone.
PROGRAM = """
import resource
{prepare}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{work}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak_bytes(prepare: str, work: str) -> int:
    """Of a process of its own, in which `prepare` runs first."""
    program = PROGRAM.format(prepare=prepare, work=work)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
