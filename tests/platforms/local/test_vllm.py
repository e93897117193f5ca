"""deployment.server=vllm on this machine, with a small stand-in for vLLM: it cannot be installed where tests run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, FinishedRun, run_ftkit

STAND_IN = """#!{python}
import os, sys
port, names = sys.argv[sys.argv.index("--port") + 1], sys.argv[sys.argv.index("--served-model-name") + 1 :]
assert sys.argv[1] == "serve" and "--max-num-seqs" in names
assert sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"
if {fails}:
    sys.exit("ValueError: no GPU here")
sys.argv = ["chat_container.py", port, sys.argv[2], "/nowhere"]
os.environ["FTKIT_MODEL"] = names[0]
exec(open({container!r}).read())
"""
OPTIONS = ("experiment=tiny", "deployment.server=vllm", "deployment.port=0")


def install(folder: Path, *, fails: bool) -> str:
    """The stand-in as ``vllm``; returns a PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "vllm"
    container = str(REPOSITORY / "tests" / "azure" / "chat_container.py")
    script.write_text(STAND_IN.format(python=sys.executable, fails=fails, container=container))
    script.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


@pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started")
def test_it_is_started_asked_and_stopped_and_missed_where_it_is_not_installed(
    finished_run: FinishedRun, tmp_path: Path
):
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    missing = run_ftkit(*OPTIONS, "stage=deploy", cwd=tmp_path)
    assert missing.status == 1
    assert "needs vllm, which is not installed" in missing.err and "deployment.server=score" in missing.err

    failed = run_ftkit(*OPTIONS, "stage=deploy", cwd=tmp_path, PATH=install(tmp_path, fails=True))
    assert failed.status == 1 and "did not start: ValueError: no GPU here" in failed.err

    path = install(tmp_path, fails=False)
    try:
        served = run_ftkit(*OPTIONS, "stage=deploy,invoke", cwd=tmp_path, PATH=path)
        assert served.status == 0, served
        assert "heard system user" in served.out
        record = json.loads((tmp_path / "outputs/tiny/deploy/record.json").read_text())
        assert record["result"]["model"].partition(":")[0] in served.out
    finally:
        stopped = run_ftkit(*OPTIONS, "stage=teardown", "yes=true", cwd=tmp_path)
    assert stopped.status == 0, stopped
    assert not Path(f"/proc/{record['result']['pid']}").exists()
