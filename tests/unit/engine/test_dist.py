import subprocess
import sys

import pytest

ENDING = """
import atexit, sys
from speechssl.engine import dist
sys.modules["kept"] = kept = []
if {group}:
    dist.setup(group=True)
    from torch.distributed import distributed_c10d
    kept.append(distributed_c10d._get_default_group())  # as DeepSpeed keeps it
atexit.register(print, "at exit")
class Loud:
    def __del__(self):
        print("torn down")
loud = Loud()
sys.modules["loud"] = loud
print("said", end=" ")
dist.shutdown()
dist.end_process(75)
"""


@pytest.mark.parametrize("group", [True, False])
def test_the_end_of_a_process_keeps_its_code_and_its_words(group: bool):
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(group=group)], capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    words = done.stdout.splitlines()
    assert words[0] == "said at exit"
    # With a group the interpreter is not torn down, without one it is.
    assert ("torn down" in words) == (not group)
