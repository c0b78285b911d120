"""The programs of docs/relevance.md, run one after the other."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "relevance.md"


def test_the_programs_of_the_page(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 3
    command = [sys.executable, "-W", "error::DeprecationWarning:matplotlib", "-c", "\n".join(programs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
    assert (tmp_path / "relevance.png").stat().st_size > 1000
