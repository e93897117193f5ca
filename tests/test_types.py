"""The type check passes where a package is left out: Azure ML's inference server is not for Python 3.13 and newer."""

import json
import os
import subprocess
import sys

from helpers.command import REPOSITORY


def test_the_type_check_wants_no_package_that_not_every_python_has(tmp_path):
    project = tmp_path / "pyrightconfig.json"
    include = os.path.relpath(REPOSITORY / "ftkit" / "serving", tmp_path)
    project.write_text(json.dumps({"include": [include], "extraPaths": [str(REPOSITORY)]}), encoding="utf-8")
    bare = getattr(sys, "_base_executable", sys.executable)
    command = [sys.executable, "-m", "pyright", "--project", project, "--pythonpath", bare, "--outputjson"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    messages = [f"{one['file']}: {one['message']}" for one in found["generalDiagnostics"]]
    assert any('"transformers" could not be resolved' in message for message in messages)
    assert [message for message in messages if "azureml_inference_server_http" in message] == []
