"""Check before training whether a push would be accepted, without changing anything on the Hub."""

import textwrap

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .errors import FAILURES, PushError, explain
from .requests import TIMEOUT, request_timeout, retry


def check_can_push(
    repo_id: str,
    token: str | None = None,
    *,
    private: bool = False,
    create_pr: bool = False,
    license: str | None = None,
    repo_type: str = "model",
) -> str:
    """Check, without changing anything on the Hub, whether a push would be accepted; return the full name of the repo.

    Args:
        token, private, create_pr, license: as of `push_folder`.
        repo_type: "model", "dataset" or "space".

    Raises:
        ValueError: if the name is invalid, or the Hub refuses the license.
        PushError: if there is no token, the Hub does not accept it, it has no right to write there, the Hub cannot be
            reached, or the options contradict the repo.
    """
    validate_repo_id(repo_id)
    token = token or get_token()
    if not token:
        raise PushError(
            "There is no token to push with: set HF_TOKEN or run `hf auth login`. Create one with write access at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    api = HfApi(token=token)
    try:
        with request_timeout(TIMEOUT):
            user = retry(api.whoami)
            full_name = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
            _check_repo(api, user, {"repo_id": full_name, "repo_type": repo_type}, private, create_pr)
            if license:
                _check_license(license)
    except FAILURES as error:
        if isinstance(error, PushError) or type(error) is ValueError:
            raise
        raise PushError(f"Cannot push to {repo_id}: {explain(error)}") from error
    return full_name


def _check_license(license: str) -> None:
    card = ModelCard(f"---\n{ModelCardData(license=license).to_yaml()}\n---\n")
    try:
        retry(card.validate)
    except ValueError as error:
        raise ValueError(
            f"`--hub_license {license}` is refused by the Hub: {textwrap.shorten(str(error), 300).rstrip('.')}. "
            "Identifiers of licenses are listed at https://huggingface.co/docs/hub/repositories-licenses; `other` is "
            "one, too."
        ) from error


def _token_of(user: dict) -> dict:
    """Return what whoami tells about the token, or an empty dict."""
    return (user.get("auth") or {}).get("accessToken") or {}


def _check_repo(api: HfApi, user: dict, target: dict[str, str], private: bool, create_pr: bool) -> None:
    repo_id = target["repo_id"]
    if _token_of(user).get("role") == "read":
        raise PushError(
            f"The token of {user['name']} can only read: create one that can write to {repo_id} at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    try:
        repo = retry(api.repo_info, **target)
    except RepositoryNotFoundError:
        if create_pr:
            raise PushError(f"There is no repo {repo_id} to open a pull request in.") from None
        _check_namespace(user, repo_id)
        return
    if private and not repo.private:
        raise PushError(
            f"{repo_id} exists and is public, but a private repo was asked for: make it private, or name another."
        )
    if create_pr:
        return  # open to everybody who may read the repo
    try:
        retry(api.auth_check, **target, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PushError(
            f"{user['name']} may not write to {repo_id}: {explain(error)} Use another token, or --hub_create_pr."
        ) from error


def _check_namespace(user: dict, repo_id: str) -> None:
    """Check with the answer of whoami whether a new repo may be created; the Hub has no request for that."""
    namespace, name = repo_id.split("/")
    roles = {group["name"]: group.get("roleInOrg") for group in user.get("orgs") or []}
    writable = [user["name"], *(group for group, role in roles.items() if role != "read")]
    if namespace not in writable:
        raise PushError(
            f"{user['name']} may not create repos under {namespace}. Allowed are: "
            f"{', '.join(f'{owner}/{name}' for owner in writable)}."
        )
    token = _token_of(user)
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    here = [scope for scope in scopes if scope.get("entity", {}).get("name") == namespace]
    granted = [permission for scope in here for permission in scope.get("permissions", [])]
    if token.get("role") == "fineGrained" and "repo.write" not in granted:
        raise PushError(
            f"The token of {user['name']} is fine-grained and may not write to the repos of {namespace}: allow that at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
