"""Types of the Triton kernels on a machine that has Triton, which comes with torch for CUDA alone."""

import json
import os
import subprocess
import sys

import pytest
from helpers.command import REPOSITORY


@pytest.mark.usefixtures("interpreted")
def test_the_kernels_pass_the_type_check_beside_triton(triton_folder, tmp_path):
    kernels = os.path.relpath(REPOSITORY / "ftkit" / "models" / "kernels", tmp_path)
    settings = {"include": [kernels], "extraPaths": [str(REPOSITORY), str(triton_folder)]}
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--project", project, "--pythonpath", sys.executable, "--outputjson"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert found["summary"]["filesAnalyzed"] >= 10
    assert [(one["file"], one["message"]) for one in found["generalDiagnostics"]] == []
