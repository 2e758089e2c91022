"""Repos and branches to commit to: created where they are missing, and gone again where nothing comes there."""

from contextlib import contextmanager

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers.utils import logging

from .requests import is_ambiguous, retry

logger = logging.get_logger(__name__)


class UnknownCommitError(RuntimeError):
    """The answer to a commit was lost, and whether the Hub has made it, or will, could not be found out."""


@contextmanager
def ensure_repo(api: HfApi, repo_id: str, revision: str | None, private: bool | None):
    """Has the repo and the branch within. Those created here are deleted where an error says that nothing is in them.

    Raises:
        ValueError: if `private` is asked of a repo that is public.
    """
    created = _prepare_repo(api, repo_id, private)
    branched = False
    try:
        if revision not in (None, "main") and not revision.startswith("refs/pr/"):
            branched = _create(
                lambda: api.create_branch(repo_id, branch=revision),
                lambda: _delete_empty_branch(api, repo_id, revision),
            )
        yield
    except UnknownCommitError:
        raise
    except BaseException:
        if branched:
            _delete_empty_branch(api, repo_id, revision)
        if created:
            _delete_empty_repo(api, repo_id)
        raise


def _prepare_repo(api: HfApi, repo_id: str, private: bool | None) -> bool:
    """Creates the repo where it is missing, and says whether it did."""
    created = False
    try:
        is_private = retry(api.repo_info, repo_id).private
    except RepositoryNotFoundError:
        created = _create(
            lambda: api.create_repo(repo_id, private=private),
            lambda: _delete_empty_repo(api, repo_id),
        )
        is_private = bool(private) if created else retry(api.repo_info, repo_id).private
    if private and not is_private:
        raise ValueError(
            f"{repo_id} exists and is public, but a private repo was asked for: nothing was pushed. Make it private "
            "in its settings, or choose another name."
        )
    return created


def _create(call, undo) -> bool:
    """Creates a repo or a branch by `call`; False where somebody else was quicker. `undo` goes before an error."""
    unsure = False

    def attempt() -> None:
        nonlocal unsure
        try:
            call()
        except Exception as error:
            unsure = unsure or is_ambiguous(error)
            raise

    try:
        retry(attempt)
    except BaseException as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 409:
            return unsure  # it is there: from here, where an answer was lost before
        if unsure or not isinstance(error, Exception):
            undo()
        raise
    return True


def _delete_empty_repo(api: HfApi, repo_id: str) -> None:
    """Deletes a repo that this push has created, unless anything was committed to it."""
    try:
        refs = api.list_repo_refs(repo_id, include_pull_requests=True)
        heads = {ref.target_commit for ref in [*refs.branches, *(refs.pull_requests or [])]}
        files = {file.rfilename for file in api.repo_info(repo_id).siblings}
        if len(heads) == 1 and files <= {".gitattributes"}:  # nothing but the Hub's own commit
            api.delete_repo(repo_id)
            return
    except RepositoryNotFoundError:
        return  # it was not created after all
    except Exception as error:
        logger.info(f"Could not delete {repo_id}: {error}")
    logger.warning(f"{repo_id} was created for this push and is left there without the model.")


def _delete_empty_branch(api: HfApi, repo_id: str, branch: str) -> None:
    """Deletes a branch that this push has created, unless it has a commit that no other has at its end."""
    try:
        heads = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).branches}
        head = heads.pop(branch, None)
        if head in heads.values():
            api.delete_branch(repo_id, branch=branch)
        if head is None or head in heads.values():
            return
    except Exception as error:
        logger.info(f"Could not delete the branch {branch} of {repo_id}: {error}")
    logger.warning(f"The branch {branch} of {repo_id} was created for this push and is left there.")


__all__ = ["UnknownCommitError", "ensure_repo"]
