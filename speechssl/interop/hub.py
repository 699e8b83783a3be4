"""Model folders onto the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from speechssl.errors import CheckpointError
from speechssl.models.bundle import load_bundle


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model folder as `organisation/name`; returns the address of the commit.

    The folder is read first, so that nothing damaged is published. The repository is made where it
    does not exist. Who you are: `hf auth login`, or HF_TOKEN.
    Raises CheckpointError for a folder that cannot be read, or when the hub refuses.
    """
    load_bundle(folder)
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message=message
        )
    except Exception as error:  # http clients have many error types and no common base
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot upload {folder} to '{repo_id}': "
            f"{reason[0] if reason else type(error).__name__}; check network, name, and that you "
            "are logged in with the right to write there (hf auth login, or HF_TOKEN)"
        ) from error
    return str(getattr(done, "commit_url", done))
