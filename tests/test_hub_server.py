"""The loopback Hub, checked with the real clients, each run in a fresh process and cache."""

import io
import json
import subprocess
import sys
import textwrap

import datasets
import pytest
from PIL import Image

from support.hub import HubServer

PROLOGUE = """
import json, os, sys, warnings
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
api = HfApi()

def add(path, content):
    return CommitOperationAdd(path, content)

def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, getattr(response, "status_code", None), str(error)]
"""


@pytest.fixture
def server():
    with HubServer() as server:
        server.add_token("hf_write", user="me", organizations=("lab",))
        server.add_token("hf_read", user="me", role="read")
        yield server


@pytest.fixture
def run_client(server, tmp_path):
    """Runs code in a fresh process against the server; returns what it printed as JSON."""

    def run(code, token="hf_write"):
        home = tmp_path / f"home-{len(list(tmp_path.iterdir()))}"
        done = subprocess.run(
            [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
            env=server.environment(home, token=token),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_what_the_client_uploads_it_downloads_again(server, run_client, tmp_path):
    result = run_client(f"""
        url = api.create_repo("me/model", private=True)
        weights = os.urandom(300_000)
        operations = [add("config.json", b"{{}}"), add("model.safetensors", weights),
                      add("figures/one.txt", b"one")]
        commit = api.create_commit("me/model", operations, commit_message="All", revision="main")
        folder = snapshot_download("me/model", local_dir={str(tmp_path / "copy")!r})
        again = api.create_commit("me/model", [add("config.json", b"{{}}")], commit_message="Same")
        print(json.dumps({{
            "url": str(url), "oid": commit.oid, "same": again.oid == commit.oid,
            "whole": open(folder + "/model.safetensors", "rb").read() == weights,
            "files": api.list_repo_files("me/model"),
            "tree": [entry.path for entry in api.list_repo_tree("me/model")],
            "lfs": [entry.lfs is not None for entry in
                    api.get_paths_info("me/model", ["config.json", "model.safetensors", "none"])],
            "private": api.model_info("me/model").private,
            "commits": [entry.title for entry in api.list_repo_commits("me/model")],
        }}))
    """)
    assert result["url"] == f"{server.url}/me/model"
    assert result["whole"] and result["same"] and result["private"]
    files = [".gitattributes", "config.json", "figures/one.txt", "model.safetensors"]
    assert result["files"] == files
    assert sorted(result["tree"]) == [".gitattributes", "config.json", "figures", files[-1]]
    assert result["lfs"] == [False, True]
    assert result["commits"] == ["All", "initial commit"]
    assert server.repo("me/model").refs == {"main": result["oid"]}


def test_branches_pull_requests_parents_and_deletions_work_as_on_the_hub(server, run_client):
    result = run_client("""
        api.create_repo("me/model")
        first = api.create_commit("me/model", [add("a.txt", b"1"), add("d/b.txt", b"1")],
                                  commit_message="one")
        api.create_branch("me/model", branch="side/way")
        api.create_branch("me/model", branch="side/way", exist_ok=True)
        api.create_commit("me/model", [add("a.txt", b"2")], commit_message="two",
                          revision="side/way")
        request = api.create_commit("me/model", [add("a.txt", b"3")], commit_message="three",
                                    create_pr=True)
        api.create_commit("me/model", [CommitOperationDelete("d/")], commit_message="less",
                          parent_commit=first.oid)
        stale = error_of(api.create_commit, "me/model", [add("a.txt", b"4")],
                         commit_message="four", parent_commit=first.oid)
        refs = api.list_repo_refs("me/model", include_pull_requests=True)
        print(json.dumps({
            "branches": [ref.name for ref in refs.branches],
            "pulls": [ref.ref for ref in refs.pull_requests], "pull": request.pr_revision,
            "stale": stale[1], "files": api.list_repo_files("me/model"),
            "branch_not_found": error_of(api.model_info, "me/model", revision="none")[0],
            "read": open(api.hf_hub_download("me/model", "a.txt", revision="side/way")).read(),
        }))
    """)
    assert result["branches"] == ["main", "side/way"]
    assert result["pulls"] == [result["pull"]] == ["refs/pr/1"]
    assert result["stale"] == 412
    assert result["files"] == [".gitattributes", "a.txt"]
    assert result["branch_not_found"] == "RevisionNotFoundError"
    assert result["read"] == "2"
    contents = {
        ref: server.repo("me/model").find(ref).files["a.txt"].content
        for ref in ("main", "side/way", "refs/pr/1")
    }
    assert contents == {"main": b"1", "side/way": b"2", "refs/pr/1": b"3"}


def test_a_token_may_do_what_its_role_allows(server, run_client):
    server.add_repo("me/model", {"README.md": b"# hand written"})
    server.add_repo("other/model", {"a.txt": b"1"})
    server.add_repo("other/secret", private=True)
    server.add_token("hf_fine", role="fineGrained", scopes=(("me/model", ("repo.write",)),))
    result = run_client("""
        def commit(repo, token, **options):
            return error_of(api.create_commit, repo, [add("a.txt", b"2")], commit_message="m",
                            token=token, **options)
        print(json.dumps({
            "who": api.whoami("hf_read")["auth"]["accessToken"]["role"],
            "orgs": [org["name"] for org in api.whoami()["orgs"]],
            "unknown": error_of(api.whoami, "hf_none"),
            "read_exist_ok": error_of(api.create_repo, "me/model", exist_ok=True, token="hf_read"),
            "read_new": error_of(api.create_repo, "me/new", token="hf_read"),
            "read_commit": commit("me/model", "hf_read"),
            "other_commit": commit("other/model", "hf_write"),
            "other_pull": commit("other/model", "hf_write", create_pr=True),
            "other_new": error_of(api.create_repo, "other/new"),
            "secret": error_of(api.model_info, "other/secret"),
            "anonymous": error_of(api.model_info, "other/secret", token=False),
            "fine_commit": commit("me/model", "hf_fine"),
            "fine_new": error_of(api.create_repo, "me/new", token="hf_fine"),
            "taken": error_of(api.create_repo, "me/model"),
            "read_access": error_of(api.auth_check, "other/model"),
            "write_access": error_of(api.auth_check, "me/model", write=True),
            "other_access": error_of(api.auth_check, "other/model", write=True),
            "secret_access": error_of(api.auth_check, "other/secret"),
            "organization": error_of(api.create_repo, "lab/new"),
        }))
    """)
    assert result["who"] == "read" and result["orgs"] == ["lab"]
    assert result["unknown"][1] == 401 and "Invalid user token" in result["unknown"][2]
    allowed = ("read_exist_ok", "other_pull", "fine_commit", "organization")
    allowed += ("read_access", "write_access")
    assert [result[name] for name in allowed] == [None] * 6
    refused = ("read_new", "read_commit", "other_commit", "other_new", "fine_new", "other_access")
    assert [result[name][1] for name in refused] == [403] * 6
    assert "you must use a write token" in result["read_commit"][2]
    assert result["secret_access"][:2] == ["RepositoryNotFoundError", 404]
    assert result["secret"][:2] == ["RepositoryNotFoundError", 404]
    assert result["anonymous"][:2] == ["RepositoryNotFoundError", 401]
    assert result["taken"][1] == 409
    assert len(server.repo("other/model").history()) == 2


def test_failures_come_as_ordered_and_only_as_often(server, run_client):
    server.fail("POST", "/preupload/", status=503)
    server.fail("PUT", "/large-files/", status="cut")
    result = run_client("""
        api.create_repo("me/model")
        operations = [add("w.bin", os.urandom(200_000)), add("README.md", b"# Card")]
        api.create_commit("me/model", operations, commit_message="retried by the client")
        print(json.dumps(api.list_repo_files("me/model")))
    """)
    assert result == [".gitattributes", "README.md", "w.bin"]
    server.fail("POST", "/commit/", status=503)
    server.fail("POST", "/commit/", status="lost_answer")
    server.fail("GET", "/resolve/.*README", status="cut")
    result = run_client("""
        def commit(content):
            return error_of(api.create_commit, "me/model", [add("README.md", content)],
                            commit_message="m")
        first, count = commit(b"refused"), len(api.list_repo_commits("me/model"))
        second = commit(b"lost")
        third = error_of(api.hf_hub_download, "me/model", "README.md")
        text = open(api.hf_hub_download("me/model", "README.md")).read()
        print(json.dumps([first[1], count, second[0], third, text]))
    """)
    status, count, lost, cut, text = result
    assert (status, count) == (503, 2)
    assert lost == "RemoteProtocolError"
    assert cut[0] == "ReadError"
    assert text == "lost"
    assert server.repo("me/model").history()[0].title == "m"
    assert not any(failure.times for failure in server.failures)


def test_a_card_the_hub_would_refuse_is_refused(server, run_client):
    server.add_repo("me/model")
    result = run_client("""
        def push(metadata):
            text = "---\\n" + metadata + "\\n---\\n# Card"
            return error_of(api.create_commit, "me/model", [add("README.md", text.encode())],
                            commit_message="m")
        index = '''model-index:
        - name: m
          results:
          - task: {type: t}
            dataset: {name: n, type: d, config: %s}
            metrics: [{type: mse, value: 0.5}]'''
        print(json.dumps([push("license: [1"), push("license: 5"), push(index % "null"),
                          push(index % "plain")]))
    """)
    broken, number, null, plain = result
    assert broken[0] == number[0] == null[0] == "ValueError"
    assert "license" in number[2] and "dataset.config" in null[2]
    assert plain is None


def test_load_dataset_reads_images_from_it(server, run_client):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    files = {}
    for split, count in (("train", 5), ("test", 3)):
        images = [Image.new("L", (28, 28), color=40 * row) for row in range(count)]
        rows = {"image": images, "label": [row % 2 for row in range(count)]}
        parquet = io.BytesIO()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet)
        files[f"mnist/{split}-00000-of-00001.parquet"] = parquet.getvalue()
    server.add_repo("me/digits", files, kind="dataset")
    result = run_client("""
        from datasets import load_dataset
        loaded = load_dataset("me/digits")
        sha = api.dataset_info("me/digits").sha
        streamed = load_dataset("me/digits", split="test", streaming=True, revision=sha)
        image = loaded["train"][3]["image"]
        print(json.dumps([{name: len(split) for name, split in loaded.items()},
                          [image.mode, image.size, image.getpixel((0, 0))],
                          loaded["train"].features["label"].names,
                          [row["label"] for row in streamed]]))
    """)
    assert result == [{"train": 5, "test": 3}, ["L", [28, 28], 120], ["even", "odd"], [0, 1, 0]]
