"""What a managed endpoint gets of ftkit is enough, and no other copy of it is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ftkit.platforms.azureml import deployment_spec

CHECK = """
import sys
import score
from ftkit.chat import harmony_render
from ftkit.serving.endpoint import vllm_engine, vllm_supervisor
print(*sorted(m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "ftkit"), sep="\\n")
"""


def test_the_scoring_script_runs_on_the_files_that_are_sent_with_it(tmp_path: Path):
    for file, path in deployment_spec._code().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / path)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()
    assert loaded and all(Path(file).is_relative_to(tmp_path) for file in loaded), loaded
