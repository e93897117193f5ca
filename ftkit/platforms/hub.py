"""The model hub as a place for what a run has made: private repositories, uploads that go on where they broke off."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ftkit.errors import StageError
from ftkit.platforms.base import Say

SIGN_IN = "hf auth login, or export HF_TOKEN=… with a token that may write there"


def push(
    folder: Path,
    repository: str,
    kind: Literal["model", "dataset"],
    *,
    card: str = "",
    private: bool,
    run: str,
    say: Say,
) -> str:
    """Upload a folder to a repository of the hub, which is made if it is not there; files of the same content stay.

    Args:
        repository: ``owner/name``.
        card: goes there in place of the folder's own README.md; empty leaves that.
        private: whether nobody else may see it.
        run: for the message of the commit.
        say: is told where it goes.

    Returns:
        The repository's address.

    Raises:
        StageError: the hub cannot be reached or refuses; or the repository is public and was to be private.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi(library_name="ftkit")
    try:
        address = hub.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if private and not hub.repo_info(repository, repo_type=kind).private:
            raise StageError(
                f"{repository} is public on the hub, and was to be private",
                where=str(address),
                cure="another name in registration.hub, or registration.hub_private=false",
            )
        say(f"uploading {folder} to {address}")
        where: dict[str, Any] = {"repo_id": repository, "repo_type": kind, "commit_message": f"ftkit: run {run}"}
        hub.upload_folder(folder_path=folder, ignore_patterns=["README.md"] if card else None, **where)
        if card:
            hub.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", **where)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        cure = SIGN_IN if status in (401, 403) else "the same command goes on with what is missing"
        raise StageError(f"the hub refused it: {_first_line(error)}", where=repository, cure=cure) from error
    except HFValidationError as error:
        raise StageError(f"the hub takes no such name: {_first_line(error)}", where="registration.hub") from error
    except OfflineModeIsEnabled as error:
        cure = "unset HF_HUB_OFFLINE, or registration.hub=null"
        raise StageError("HF_HUB_OFFLINE forbids to ask the hub", where=repository, cure=cure) from error
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # of a part that broke off
        cure = "the same command goes on with what is missing"
        raise StageError(f"the upload broke off: {_first_line(error)}", where=repository, cure=cure) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
