"""The data plane's run history: state, logs and outputs of jobs, as the SDK streams and downloads them."""

from __future__ import annotations

from typing import Any

from standin import names
from standin.job_run import JobRun
from standin.jobs import Jobs
from standin.resources import Resources
from standin.store import long_uri
from standin.web import Request, Response, Router, answer

SERVICES = ("api", "catalog", "experimentation", "gallery", "history", "hyperdrive", "labeling", "modelmanagement",
            "pipelines", "studio", "mlflow")  # fmt: skip


class History:
    """Its routes."""

    def __init__(self, jobs: Jobs, resources: Resources):
        self._jobs, self._resources = jobs, resources

    def routes(self, router: Router) -> None:
        history = f"/history/v1.0{names.WORKSPACE_ID}"
        router.add("GET", "/discovery", lambda request: answer(dict.fromkeys(SERVICES, f"https://{names.DATA_PLANE}")))
        router.add("GET", f"{history}/runs/{{name}}/details", self._details)
        router.add("GET", f"{history}/runs/{{name}}/children", lambda request, name: answer({"value": []}))
        router.add("GET", f"{history}/runs/{{name}}", self._run)
        router.add("POST", f"{history}/rundata", self._run_data)
        router.add("PATCH", f"{history}/experiments/{{experiment}}/runs/{{name}}", self._modify)
        router.add("POST", f"/data/v1.0{names.WORKSPACE_ID}/dataversion/batchGetResolvedUris", self._resolve)

    def _details(self, request: Request, name: str) -> Response:
        run = self._jobs.find(name)
        return answer(
            {
                "runId": name,
                "status": run.status,
                "logFiles": dict(run.logs),
                "properties": {},
                "error": run.error if run.status == "Failed" else None,
                "warnings": [],
            }
        )

    def _run(self, request: Request, name: str) -> Response:
        return answer(self._metadata(self._jobs.find(name)))

    def _run_data(self, request: Request) -> Response:
        return answer({"runMetadata": self._metadata(self._jobs.find(request.json["runId"]))})

    def _metadata(self, run: JobRun) -> dict[str, Any]:
        outputs = {
            name: {"assetId": _asset_id(run.name, name), "type": output["jobOutputType"]}
            for name, output in run.properties["outputs"].items()
        }
        tags = self._resources.get(f"jobs/{run.name}")["properties"].get("tags") or {}
        return {"runId": run.name, "status": run.status, "outputs": outputs, "properties": {}, "tags": tags}

    def _modify(self, request: Request, experiment: str, name: str) -> Response:
        run, sent = self._jobs.find(name), request.json
        changed = {key: sent[key] for key in ("tags", "displayName", "description") if sent.get(key) is not None}
        self._resources.change(f"jobs/{name}", **changed)
        return answer(self._metadata(run))

    def _resolve(self, request: Request) -> Response:
        uris = {
            _asset_id(run.name, name): {"uri": long_uri(output["uri"]), "type": output["jobOutputType"]}
            for run in self._jobs
            for name, output in run.properties["outputs"].items()
            if "uri" in output  # of a job that has begun
        }
        return answer({"values": {asset: uris[asset] for asset in request.json["values"] if asset in uris}})


def _asset_id(job: str, output: str) -> str:
    return f"azureml://locations/{names.REGION}/workspaces/w-1/data/azureml_{job}_output_data_{output}/versions/1"
